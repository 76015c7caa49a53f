"""Volume rendering: front-to-back compositing of packed ray samples (Max 1995; NeRF, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Composite:
    """Result of compositing N samples on R rays.

    Attributes:
        colour: (R, 3) colour, premultiplied by opacity.
        opacity: (R,) opacity in [0, 1].
        distance: (R,) expected distance in metres, weighted by opacity and *not* divided by it.
        optical_depth: (N,) optical depth in front of each sample; the transmittance is ``exp(-optical_depth)``.
    """

    colour: torch.Tensor
    opacity: torch.Tensor
    distance: torch.Tensor
    optical_depth: torch.Tensor


def composite(
    density: torch.Tensor,
    colour: torch.Tensor,
    distance: torch.Tensor,
    ray: torch.Tensor,
    rays: int,
    step: float,
) -> Composite:
    """Composite N samples front to back, each with a thickness of ``step`` metres.

    ``w_i = T_i (1 - exp(-sigma_i step))`` with ``T_i = exp(-sum_{j<i} sigma_j step)`` over the same ray.

    Args:
        density: (N,) density per metre.
        colour: (N, 3) colour in [0, 1].
        distance: (N,) distance along the ray, metres.
        ray: (N,) int64 index of the ray, ascending; the samples of a ray are sorted front to back.
        rays: number of rays R; rays without samples are transparent.
        step: thickness of a sample, metres.

    Differentiable with respect to density and colour.
    """
    count = torch.bincount(ray, minlength=rays)
    start = count.cumsum(0) - count
    longest = int(count.max()) if len(ray) else 0
    slot = torch.arange(len(ray), device=ray.device) - start[ray]
    # A padded table keeps the running sums of a ray apart from those of all others, in float32.
    where = ray * longest + slot
    depth = density.new_zeros(rays * longest).index_put((where,), density * step).view(rays, longest)
    optical_depth = (depth.cumsum(dim=1) - depth).view(-1)[where]
    weight = torch.exp(-optical_depth) * (1.0 - torch.exp(-density * step))
    sums = torch.cat([weight[:, None] * colour, weight[:, None], (weight * distance)[:, None]], dim=-1)
    total = sums.new_zeros((rays, 5)).index_add(0, ray, sums)
    return Composite(total[:, :3], total[:, 3], total[:, 4], optical_depth)

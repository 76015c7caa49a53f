"""Volume rendering of packed samples (Max 1995; NeRF, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Composite:
    """What R rays see.

    Attributes:
        colour: (R, 3) premultiplied.
        opacity: (R,) in [0, 1].
        distance: (R,) expected distance in metres, weighted by opacity and *not* divided by it.
        passed: (N,) optical thickness in front of each sample.
    """

    colour: torch.Tensor
    opacity: torch.Tensor
    distance: torch.Tensor
    passed: torch.Tensor


def composite(
    density: torch.Tensor,
    colour: torch.Tensor,
    distance: torch.Tensor,
    ray: torch.Tensor,
    rays: int,
    step: float,
) -> Composite:
    """Front-to-back compositing of N samples, each as thick as ``step`` metres.

    ``w_i = T_i (1 - exp(-sigma_i step))`` with ``T_i = exp(-sum_{j<i} sigma_j step)`` over the same ray.

    Args:
        density: (N,) per metre. colour: (N, 3). distance: (N,) metres.
        ray: (N,) int64, ascending; samples of a ray lie front to back.
        rays: number of rays; a ray without samples is empty.

    Differentiable with respect to density and colour.
    """
    count = torch.bincount(ray, minlength=rays)
    start = count.cumsum(0) - count
    longest = int(count.max()) if len(ray) else 0
    slot = torch.arange(len(ray), device=ray.device) - start[ray]
    # A padded table keeps the running sums of a ray apart from those of all others, in float32.
    where = ray * longest + slot
    depth = density.new_zeros(rays * longest).index_put((where,), density * step).view(rays, longest)
    passed = (depth.cumsum(dim=1) - depth).view(-1)[where]
    weight = torch.exp(-passed) * (1.0 - torch.exp(-density * step))
    sums = torch.cat([weight[:, None] * colour, weight[:, None], (weight * distance)[:, None]], dim=-1)
    total = sums.new_zeros((rays, 5)).index_add(0, ray, sums)
    return Composite(total[:, :3], total[:, 3], total[:, 4], passed)

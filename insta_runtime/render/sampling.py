"""Ray marching: samples in the occupied cells of the posed grid, kept where canonical space is occupied."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from insta_runtime.config import SamplingConfig
from insta_runtime.render.occupancy import OccupancyGrid
from insta_runtime.render.rays import Rays
from insta_runtime.warp.warp import PosedHead

NEAREST = 0.05
"""Distance in metres along a ray before which no samples are taken."""


@dataclass(frozen=True)
class RaySamples:
    """N packed samples of R rays, sorted by ray and, within a ray, front to back.

    Attributes:
        ray: (N,) int64 index of the sample's ray.
        distance: (N,) distance along the ray from the camera to the sample, metres.
        position: (N, 3) canonical position in the unit cube.
        direction: (N, 3) canonical unit view direction.
        masks: (N, 2) weights of mouth code and eye code.
    """

    ray: torch.Tensor
    distance: torch.Tensor
    position: torch.Tensor
    direction: torch.Tensor
    masks: torch.Tensor

    @staticmethod
    def join(parts: list[RaySamples], rays_each: int) -> RaySamples:
        """Concatenate the samples of several bundles of ``rays_each`` rays each, whose rays are renumbered."""
        return RaySamples(
            torch.cat([part.ray + i * rays_each for i, part in enumerate(parts)]),
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("distance", "position", "direction", "masks")
            ),
        )


def march(
    rays: Rays,
    head: PosedHead,
    occupancy: OccupancyGrid,
    config: SamplingConfig,
    generator: torch.Generator | None = None,
) -> RaySamples:
    """Sample rays every ``config.step`` metres in the occupied cells of the posed head, and warp the samples.

    Samples whose canonical position is not in an occupied cell are dropped.

    With a ``generator`` each ray starts at a random fraction of a step (training).  Without one, steps are anchored in
    head space: a still head renders a still image, and samples do not shift through a head that comes nearer.  Beyond
    ``config.max_samples`` the farthest samples of a ray are dropped.
    """
    box, resolution = head.warp.box, head.warp.resolution
    device = rays.origins.device
    cells = occupancy.posed(head)
    head.prepare(cells)

    # Slab test against the bounds of the occupied cells, not of the whole box.
    index = cells.nonzero()[:, 0]
    if len(index) == 0 or len(rays) == 0:
        empty = torch.zeros((0, 3), device=device)
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return RaySamples(none, empty[:, 0], empty, empty, empty[:, :2])
    centres = box.cell_centres(index, resolution)
    half = 0.5 * box.side / resolution
    lower, upper = centres.amin(0) - half, centres.amax(0) + half
    safe = torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
    t0, t1 = (lower - rays.origins) / safe, (upper - rays.origins) / safe
    enter = torch.minimum(t0, t1).amax(dim=-1).clamp_min(NEAREST)
    leave = torch.minimum(torch.maximum(t0, t1).amin(dim=-1), rays.far)
    hits = (leave > enter).nonzero()[:, 0]
    if len(hits) == 0:
        empty = torch.zeros((0, 3), device=device)
        return RaySamples(hits, empty[:, 0], empty, empty, empty[:, :2])

    # Steps are multiples of the step size from the camera, so that neighbouring rays have samples at equal distances.
    first = (enter[hits] / config.step).floor()
    count = int(((leave[hits] - enter[hits]).max() / config.step).ceil()) + 1
    offset = (
        torch.rand((len(hits), 1), generator=generator).to(device)
        if generator is not None
        else (rays.origins[hits].norm(dim=-1, keepdim=True) / config.step + 0.5).remainder(1.0)
    )
    t = (first[:, None] + torch.arange(count, device=device) + offset) * config.step
    points = rays.origins[hits, None] + t[..., None] * rays.directions[hits, None]
    occupied = cells[box.cell_of(points.reshape(-1, 3), resolution)].view(t.shape) & (t < leave[hits, None])
    row, column = occupied.nonzero(as_tuple=True)
    if len(row) == 0:
        empty = torch.zeros((0, 3), device=device)
        return RaySamples(row, empty[:, 0], empty, empty, empty[:, :2])

    position = points[row, column]
    directions = rays.directions[hits[row]]
    samples = head.to_canonical(position, directions if rays.turn is None else directions @ rays.turn.T)
    kept = occupancy.contains(samples.position)
    rank = torch.zeros_like(occupied, dtype=torch.int32)
    rank[row, column] = kept.int()
    kept &= rank.cumsum(dim=1)[row, column] <= config.max_samples
    row, column = row[kept], column[kept]
    return RaySamples(
        hits[row],
        t[row, column],
        box.normalise(samples.position[kept]),
        samples.direction[kept],
        samples.masks[kept],
    )

"""Throughput of nearest-triangle queries to the posed head, at the points where rays take samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from telepresence.measure.bench.timing import batch_ms, cycled

if TYPE_CHECKING:
    import torch

    from insta_runtime.native.kernels import Kernels
    from insta_runtime.render.model import AvatarModel
    from insta_runtime.types import Camera, HeadState

GPU_POINTS, CPU_POINTS = 1 << 20, 1 << 15
POINT_SETS: Final = 4
"""Number of sets of points, each of another pose, used in turn so that caches do not hold the last one."""

Points = Callable[["AvatarModel", "HeadState", "Camera", int], "torch.Tensor"]
"""Function that chooses a number of points (N, 3), in metres, near the head in one state."""


def point_count(device: torch.device) -> int:
    """Number of points of one measurement on ``device``."""
    return GPU_POINTS if device.type == "cuda" else CPU_POINTS


def ray_sample_points(model: AvatarModel, state: HeadState, camera: Camera, count: int) -> torch.Tensor:
    """Sample points of a frame's rays that lie in marked cells, (count, 3) in metres, in the order of the rays.

    The first ray is that of a random pixel; a frame with too few points is used more than once.
    """
    import torch

    from insta_runtime.render.rays import pixel_rays

    box, resolution, step = model.warp.box, model.warp.resolution, model.config.sampling.step
    device, pixels = model.device, camera.width * camera.height
    with torch.no_grad():
        marked = model.occupancy.posed(model.pose(state))
        centres = box.cell_centres(marked.nonzero()[:, 0], resolution)
        first_pixel, near = torch.zeros(1, dtype=torch.int64, device=device), torch.ones(1, device=device)
        eye = pixel_rays(state, camera, first_pixel, near, 0.0)
        away = (centres - eye.origins).norm(dim=-1)
        lattice = torch.arange(int(away.min() / step) - 4, int(away.max() / step) + 4, device=device)
        t = (lattice + 0.5) * step
        found: list[torch.Tensor] = []
        first = int(torch.randint(pixels, (1,)))
        while sum(map(len, found)) < count:
            chunk = (torch.arange(1 << 13, device=device) + first) % pixels
            rays = pixel_rays(state, camera, chunk, torch.ones(len(chunk), device=device), 0.0)
            points = (rays.origins[:, None] + t[:, None] * rays.directions[:, None]).view(-1, 3)
            unit = box.normalise(points)
            inside = ((unit >= 0.0) & (unit < 1.0)).all(dim=-1)
            found.append(points[inside & marked[box.cell_of(points, resolution)]])
            first += 1 << 13
    return torch.cat(found)[:count].contiguous()


def random_points(model: AvatarModel, state: HeadState, camera: Camera, count: int) -> torch.Tensor:
    """Random points in the marked cells, (count, 3) in metres, in random order: the worst case for caches."""
    import torch

    del camera
    warp = model.warp
    with torch.no_grad():
        marked = model.occupancy.posed(model.pose(state)).nonzero()[:, 0]
    cells = marked[torch.randint(len(marked), (count,), device=marked.device)]
    jitter = torch.rand((count, 3), device=marked.device) - 0.5
    return warp.box.cell_centres(cells, warp.resolution) + jitter * (warp.box.side / warp.resolution)


def torch_gqps(
    model: AvatarModel, states: list[HeadState], camera: Camera, seconds: float, points: Points = ray_sample_points
) -> float:
    """Throughput of the torch reference (`CandidateGrid.query`) in 10^9 queries a second."""
    import torch

    count = point_count(model.device)
    sets = []
    with torch.no_grad():
        for state in cycled(states, POINT_SETS):
            head = model.pose(state)
            cells = model.occupancy.posed(head).nonzero()[:, 0]
            grid = model.warp.candidate_grid(head.soup, cells, model.warp.resolution, model.warp.neutral_grid)
            sets.append((grid, points(model, state, camera, count)))
        return count / batch_ms(lambda pair: pair[0].query(pair[1]), sets, model.device, seconds) / 1e6


def native_gqps(
    model: AvatarModel,
    kernels: Kernels,
    states: list[HeadState],
    camera: Camera,
    seconds: float,
    points: Points = ray_sample_points,
) -> float:
    """Throughput of the kernel ``nearest_query`` in 10^9 queries a second."""
    import torch

    from insta_runtime.native.occupancy import occupancy_struct
    from insta_runtime.native.posing import PosedHeads, pack_state

    count, device = point_count(model.device), model.device
    space = occupancy_struct(kernels, model.occupancy, model.occupancy.state())
    words = -(-(model.config.occupancy.resolution**3) // 32)
    kernels.launch("threshold_occupancy", space, model.config.occupancy.threshold, items=words)
    chosen = list(cycled(states, POINT_SETS))
    heads = PosedHeads(kernels, model, POINT_SETS)
    for number, state in enumerate(chosen):
        heads.states[number] = torch.from_numpy(pack_state(model, state, camera)).to(device)
    heads.run(space)
    calls = [
        kernels.bind(
            "nearest_query",
            heads.head,
            heads.poses,
            number,
            points(model, state, camera, count),
            count,
            torch.empty(count, dtype=torch.int32, device=device),
            torch.empty((count, 3), device=device),
            torch.empty(count, device=device),
            items=count,
        )
        for number, state in enumerate(chosen)
    ]
    return count / batch_ms(lambda call: call(), calls, device, seconds) / 1e6

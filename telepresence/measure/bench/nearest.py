"""The nearest triangle of the posed head, alone: queries a second at the points where rays take samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from telepresence.measure.bench.timing import batch_ms, cycled

if TYPE_CHECKING:
    import torch

    from insta_runtime.native.kernels import Kernels
    from insta_runtime.render.model import AvatarModel
    from insta_runtime.types import Camera, HeadState

GPU_POINTS, CPU_POINTS = 1 << 20, 1 << 15
SETS = 4  # of points, in as many poses; they take turns

Points = Callable[["AvatarModel", "HeadState", "Camera", int], "torch.Tensor"]


def point_count(device: torch.device) -> int:
    """How many points a query takes."""
    return GPU_POINTS if device.type == "cuda" else CPU_POINTS


def ray_sample_points(model: AvatarModel, state: HeadState, camera: Camera, count: int) -> torch.Tensor:
    """(count, 3) points, metres, at the steps of the picture's rays that lie in marked cells, in the rays' order.

    The rays begin at a random pixel; a picture that has too few points is gone through again.
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
    """(count, 3) points, metres, anywhere in the marked cells, in no order: the hardest case for caches."""
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
    """10^9 queries a second of `CandidateGrid.query`."""
    import torch

    count = point_count(model.device)
    sets = []
    with torch.no_grad():
        for state in cycled(states, SETS):
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
    """10^9 queries a second of the kernel ``nearest_query``."""
    import torch

    from insta_runtime.native.occupancy import occupancy_struct
    from insta_runtime.native.posing import PosedHeads, pack_state

    count, device = point_count(model.device), model.device
    space = occupancy_struct(kernels, model.occupancy, model.occupancy.state())
    words = -(-(model.config.occupancy.resolution**3) // 32)
    kernels.launch("threshold_occupancy", space, model.config.occupancy.threshold, items=words)
    chosen = list(cycled(states, SETS))
    heads = PosedHeads(kernels, model, SETS)
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

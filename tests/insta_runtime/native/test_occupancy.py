"""Occupancy grid kernels against the torch reference."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch

from insta_runtime.field.expression_code import CODE_WIDTH, condition
from insta_runtime.geometry import camera_vertices
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.field import PackedField, flatten
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.occupancy import occupancy_struct
from insta_runtime.native.posing import PosedHeads, pack_state
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.occupancy import VISIBILITY_DECAY, OccupancyGrid
from insta_runtime.render.raster import rasterise
from insta_runtime.types import Camera, HeadState
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, pose

SEED = 5
FP16 = 0.03  # opacity; fp16 weights change a log density by about a hundredth
FLOAT32 = 1e-5


@cache
def fresh_model(device: torch.device) -> AvatarModel:
    return AvatarModel(open_head(), neutral_shape(open_head()), SMALL, device)


@pytest.fixture
def model(device: torch.device) -> AvatarModel:
    fresh = fresh_model(device)
    return copy.deepcopy(fresh, {id(part): part for part in (fresh.head, fresh.rig, fresh.warp)})


@pytest.fixture
def kernels(device: torch.device) -> Kernels:
    return Kernels(device, avatar_constants(SMALL))


def space_of(kernels: Kernels, grid: OccupancyGrid) -> Struct:
    """The grid's state as a struct, with invalid values in the fields that kernels write."""
    space = occupancy_struct(kernels, grid, grid.state())
    space.tensor("occupied").fill_(77)
    space.tensor("dense").fill_(0x55555555)
    return space


def unpacked(words: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) bool from words of 32 bits, lowest bit first."""
    return (words[:, None] >> torch.arange(32, device=words.device) & 1).bool().view(-1)[:count]


def test_occupied_cells_are_those_of_the_torch_reference(kernels: Kernels, model: AvatarModel) -> None:
    grid = model.occupancy
    grid.value.copy_(torch.rand(len(grid.value)) * 0.06)
    grid.value[:3] = torch.tensor([grid.config.threshold, float("nan"), 1.0])
    grid.view_count.copy_(torch.randint(0, 9, grid.view_count.shape))
    grid.matte_count.copy_((grid.view_count.cpu() * torch.rand(grid.view_count.shape)).floor())
    space = space_of(kernels, grid)
    kernels.launch("threshold_occupancy", space, grid.config.threshold, items=grid.config.resolution**3 // 32)
    grid.load(grid.state())
    occupied = space.tensors["occupied"]
    assert torch.equal(occupied, grid.occupied.byte())
    assert torch.equal(unpacked(space.tensors["dense"], len(grid.dense)), grid.dense)
    assert 0.1 < occupied.float().mean() < 0.9


def depth_of(model: AvatarModel, state: HeadState, view: Camera) -> torch.Tensor:
    """Depth (H, W) of the posed mesh, slightly too near, so that part of the head is hidden."""
    depth = rasterise(camera_vertices(model.pose(state).vertices, state), model.rig.faces, view).depth
    return (depth - 0.02).contiguous()


def carve(kernels: Kernels, model: AvatarModel, state: HeadState, view: Camera, alpha: torch.Tensor) -> None:
    """Run `carve_cells` on the second of two poses, whose vertices and maps are those of the torch reference."""
    heads, posed = PosedHeads(kernels, model, 2), model.pose(state)
    heads.states[1] = torch.as_tensor(pack_state(model, state, view))
    for name, truth in (("vertices", posed.vertices), ("maps", posed.triangle_maps.reshape(-1, 9))):
        values = heads.poses.tensors[name]
        assert isinstance(values, torch.Tensor)
        values[0], values[1] = float("nan"), truth
    space = space_of(kernels, model.occupancy)
    kernels.launch(
        "carve_cells",
        heads.head,
        heads.poses,
        space,
        1,
        alpha,
        depth_of(model, state, view),
        view.width,
        view.height,
        items=space.value.count,
    )


@pytest.mark.parametrize("view", [camera(48), camera(160), camera(96).cropped(40.0, 20.0, 48, 70)])
def test_carving_is_that_of_the_torch_reference(kernels: Kernels, model: AvatarModel, view: Camera) -> None:
    grid, state = model.occupancy, pose(open_head(), jaw=0.6, yaw=0.4)
    alpha = (torch.rand(view.height, view.width) ** 20 * 255).byte().to(kernels.device)
    alpha[: view.height // 3] = 0
    depth = depth_of(model, state, view)
    grid.carve(model.pose(state), state, view, alpha.float() / 255.0, depth, SMALL.sampling.behind)
    seen, inside = grid.view_count.clone(), grid.matte_count.clone()
    grid.view_count.zero_()
    grid.matte_count.zero_()
    for _ in range(2):
        carve(kernels, model, state, view, alpha)
    assert 0.05 < inside.mean() < 0.95 * seen.mean()
    # Cells whose centre projects to the border of a pixel may fall into the next pixel by rounding.
    assert (grid.view_count != 2 * seen).float().mean() < 2e-3
    assert (grid.matte_count != 2 * inside).float().mean() < 5e-3


@pytest.mark.parametrize("z", [float("nan"), -0.6, 0.0])
def test_a_head_behind_the_camera_is_not_counted(kernels: Kernels, model: AvatarModel, z: float) -> None:
    """At z = 0 the head surrounds the camera, and its cells in front of the camera are counted."""
    view = camera(48)
    heads = PosedHeads(kernels, model, 1)
    state = pose(open_head())
    heads.states[0] = torch.as_tensor(pack_state(model, state, view))
    heads.states[0, 14 + 9 + 2 + len(state.expression)] = z
    posed = model.pose(state)
    for name, truth in (("vertices", posed.vertices), ("maps", posed.triangle_maps.reshape(-1, 9))):
        values = heads.poses.tensors[name]
        assert isinstance(values, torch.Tensor)
        values[0] = truth
    space = space_of(kernels, model.occupancy)
    alpha = torch.full((48, 48), 255, dtype=torch.uint8, device=kernels.device)
    nowhere = torch.full((48, 48), torch.inf, device=kernels.device)
    kernels.launch("carve_cells", heads.head, heads.poses, space, 0, alpha, nowhere, 48, 48, items=space.value.count)
    grid = model.occupancy
    assert torch.equal(grid.view_count, grid.matte_count)
    assert bool(grid.view_count.any()) == (z == 0.0)


def pcg(x: np.ndarray | int) -> np.ndarray:
    """The hash function of random.cuh, in Python."""
    x = np.asarray(x, dtype=np.uint32)
    with np.errstate(over="ignore"):
        state = x * np.uint32(747796405) + np.uint32(2891336453)
        word = ((state >> ((state >> np.uint32(28)) + np.uint32(4))) ^ state) * np.uint32(277803737)
        return (word >> np.uint32(22)) ^ word


def drawn(grid: OccupancyGrid, step: int, updates: int, codes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random draws of `update_occupancy`: cells (N,), points (N, 3) in the unit cube, rows of codes (N,)."""
    count = len(grid.cells)
    number = min(updates, count)
    index = np.arange(number, dtype=np.int64)
    with np.errstate(over="ignore"):
        draw = pcg(np.uint32(SEED) + pcg(step))

        def bits(what: int) -> np.ndarray:
            return pcg(draw + pcg(index.astype(np.uint32) + pcg(what)))

    def below(what: int, n: np.ndarray | int) -> np.ndarray:
        return (bits(what).astype(np.uint64) * np.asarray(n, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)

    start, end = count * index // number, count * (index + 1) // number
    cells = torch.as_tensor(start + below(0, end - start)).to(grid.cells.device)
    jitter = np.stack([(bits(axis) >> np.uint32(8)) / 2.0**24 for axis in (1, 2, 3)], axis=-1).astype(np.float32)
    n, flat = grid.config.resolution, grid.cells[cells]
    corner = torch.stack([flat % n, flat // n % n, flat // (n * n)], dim=-1)
    points = (corner + torch.as_tensor(jitter).to(flat.device)) / n
    return cells, points, torch.as_tensor(below(4, codes)).to(flat.device)


def update(kernels: Kernels, model: AvatarModel, codes: torch.Tensor, step: int, known: int, updates: int) -> None:
    field = PackedField(kernels, SMALL.radiance)
    field.load(flatten(model.field.state_dict(), SMALL.radiance))
    progress = torch.tensor([step, known], dtype=torch.int32, device=kernels.device)
    grid = model.occupancy
    kernels.launch(
        "update_occupancy",
        space_of(kernels, grid),
        field.weights,
        codes,
        codes.shape[1],
        progress,
        SEED,
        updates,
        grid.config.decay,
        grid.step,
        items=32 * -(-min(updates, len(grid.cells)) // 32),
    )


@pytest.mark.parametrize("updates", [1, 777, 1 << 20])
def test_updates_are_those_of_the_torch_reference_at_the_drawn_points(
    kernels: Kernels, model: AvatarModel, updates: int
) -> None:
    grid = model.occupancy
    with torch.no_grad():  # so that densities vary
        for parameter in model.field.grid.parameters():
            parameter.uniform_(-2.0, 2.0)
    grid.value.uniform_(0.0, 0.3)
    before = grid.value.clone()
    codes = torch.randn(5, CODE_WIDTH + 3).to(kernels.device)
    codes[4] = float("nan")  # a fifth row, which must not be read
    update(kernels, model, codes, step=9, known=4, updates=updates)
    cells, points, rows = drawn(grid, 9, updates, 4)
    assert len(cells.unique()) == min(updates, len(grid.cells)), "no cell is drawn twice"
    with torch.no_grad():
        density, _ = model.field.density(points, condition(codes[rows, :CODE_WIDTH], grid.masks[cells]))
    expected = before.clone()
    opacity = 1.0 - torch.exp(-density * grid.step)
    expected[cells] = torch.maximum(before[cells] * grid.config.decay, opacity)
    tolerance = FLOAT32 if kernels.storage == torch.float32 else FP16
    torch.testing.assert_close(grid.value, expected, rtol=0.0, atol=tolerance)
    untouched = torch.ones_like(grid.value, dtype=torch.bool)
    untouched[cells] = False
    assert torch.equal(grid.value[untouched], before[untouched])
    faded = torch.where(untouched, 1.0, VISIBILITY_DECAY)
    torch.testing.assert_close(grid.visibility, faded, rtol=0.0, atol=1e-6)
    if updates > 1:
        assert 0.02 < (expected[cells] > before[cells]).float().mean() < 0.98


def test_each_step_draws_other_points(kernels: Kernels, model: AvatarModel) -> None:
    codes = torch.zeros((1, CODE_WIDTH), device=kernels.device)
    values = []
    for step in (3, 3, 4):
        model.occupancy.value.zero_()
        update(kernels, model, codes, step, known=1, updates=500)
        values.append(model.occupancy.value.clone())
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_without_codes_nothing_changes(kernels: Kernels, model: AvatarModel) -> None:
    before = model.occupancy.value.clone()
    update(kernels, model, torch.full((1, CODE_WIDTH), float("nan"), device=kernels.device), 0, known=0, updates=100)
    assert torch.equal(model.occupancy.value, before)

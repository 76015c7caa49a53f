"""Canonical occupancy grid: initial cells, space carving by silhouettes, updates by density."""

from __future__ import annotations

import pytest
import torch

from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.geometry import camera_vertices
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.occupancy import HULL_VOTES, INSIDE_DEPTH, OccupancyGrid, drawable_state
from insta_runtime.render.raster import rasterise
from tests.support.small_person import camera, open_head, pose, small_model

VIEW = camera(48)
NOTHING = torch.full((48, 48), torch.inf)  # the depth of a mesh that hides nothing
NO_CODES = torch.zeros((1, CODE_WIDTH))


@pytest.fixture
def model() -> AvatarModel:
    return small_model()


def centres(grid: OccupancyGrid) -> torch.Tensor:
    """(C, 3) of the candidate cells, canonical metres."""
    return grid.warp.box.cell_centres(grid.cells, grid.config.resolution)


def look(model: AvatarModel, alpha: torch.Tensor, times: int = HULL_VOTES) -> None:
    state = pose(open_head())
    for _ in range(times):
        model.occupancy.carve(model.pose(state), state, VIEW, alpha, NOTHING, 0.0)
    model.occupancy.load(model.occupancy.state())


class Half:
    """A density known in closed form: opaque where x < 0.5 in the unit cube, empty elsewhere."""

    def density(self, points: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.where(points[:, 0] < 0.5, 500.0, 0.0), codes


def test_at_first_everything_near_the_skin_is_occupied(model: AvatarModel) -> None:
    grid = model.occupancy
    assert grid.occupied.all()
    assert grid.contains(model.warp.canonical.vertices).float().mean() > 0.95
    corner = grid.warp.box.origin + 1e-3
    assert not grid.contains(torch.stack([corner, corner - 1.0, corner + 9.0])).any()
    assert 0.02 < len(grid.cells) / grid.config.resolution**3 < 0.3, "a layer, not the whole box"


def test_an_empty_matte_empties_all_cells_after_enough_frames(model: AvatarModel) -> None:
    look(model, torch.zeros((48, 48)), HULL_VOTES - 1)
    assert model.occupancy.occupied.all()
    look(model, torch.zeros((48, 48)), 1)
    shown = model.occupancy.view_count > 0
    assert shown.float().mean() > 0.9
    assert torch.equal(model.occupancy.occupied, ~shown)


def test_a_full_matte_empties_nothing(model: AvatarModel) -> None:
    look(model, torch.ones((48, 48)), 5)
    assert model.occupancy.occupied.all()


def test_carving_keeps_cells_inside_the_silhouette(model: AvatarModel) -> None:
    alpha = torch.zeros((48, 48))
    alpha[:, :24] = 1.0
    look(model, alpha)
    grid, state = model.occupancy, pose(open_head())
    there = model.pose(state).forward_warp(centres(grid)[:, None], grid.triangle)[:, 0]
    x, _, z = camera_vertices(there, state).unbind(-1)
    column = x / z * VIEW.fx + VIEW.cx
    assert grid.occupied[column < 24].all()
    cell = VIEW.fx * grid.warp.box.side / grid.config.resolution / 0.5
    assert not grid.occupied[(column > 24 + cell) & (column < 48)].any()


@pytest.mark.parametrize(("pictures", "kept"), [(4, True), (12, False)])
def test_mattes_may_fail_in_some_frames(model: AvatarModel, pictures: int, kept: bool) -> None:
    """One matte contains the head, the others do not: one of four frames suffices, one of twelve does not."""
    look(model, torch.ones((48, 48)), 1)
    look(model, torch.zeros((48, 48)), pictures - 1)
    shown = model.occupancy.view_count == pictures
    assert shown.float().mean() > 0.9
    assert (model.occupancy.occupied[shown] == kept).all()


def test_a_mouth_that_any_expression_opens_stays_occupied(model: AvatarModel) -> None:
    class Open:
        """Dense where the code of the open jaw arrives."""

        def density(self, points: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return 500.0 * codes[:, 0], codes

    grid, codes = model.occupancy, torch.zeros((2, CODE_WIDTH))
    codes[0, 0] = 1.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        grid.update(Open(), codes, generator)
    mouth = grid.masks[:, 0]
    assert (mouth > 0.5).any()
    assert grid.occupied[mouth > 0.5].float().mean() > 0.95
    assert not grid.occupied[mouth == 0].any()


def test_cells_that_no_frame_shows_are_kept(model: AvatarModel) -> None:
    state = pose(open_head())
    aside = camera(48).cropped(1000.0, 0.0, 48, 48)
    for _ in range(2 * HULL_VOTES):
        model.occupancy.carve(model.pose(state), state, aside, torch.zeros((48, 48)), NOTHING, 0.0)
    assert model.occupancy.occupied.all()


def test_cells_behind_the_head_are_not_rendered(model: AvatarModel) -> None:
    grid, state = model.occupancy, pose(open_head())
    depth = rasterise(camera_vertices(model.pose(state).vertices, state), model.rig.faces, VIEW).depth
    grid.carve(model.pose(state), state, VIEW, torch.ones((48, 48)), depth, 0.02)
    there = model.pose(state).forward_warp(centres(grid)[:, None], grid.triangle)[:, 0]
    z = camera_vertices(there, state)[:, 2]
    nose, back = float(depth.min()), float(z.max())
    assert grid.view_count[z < nose + 0.02].all()
    x, y, _ = grid.warp.box.normalise(centres(grid)).unbind(-1)
    behind = (z > back - 0.1) & ((x - 0.5).abs() < 0.1) & ((y - 0.65).abs() < 0.1)
    assert behind.sum() > 20
    assert not grid.view_count[behind].any()
    # Rendered are the cells that frames showed; all cells if there were no frames.
    drawn = small_model().occupancy
    drawn.load(drawable_state(grid.state()))
    assert torch.equal(drawn.occupied, grid.view_count > 0)
    drawn.load(drawable_state(small_model().occupancy.state()))
    assert drawn.occupied.all()


def test_cells_hidden_for_long_are_not_rendered(model: AvatarModel) -> None:
    class Solid:
        """Dense everywhere."""

        def density(self, points: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.full((len(points),), 500.0), codes

    grid, codes = model.occupancy, torch.zeros((1, CODE_WIDTH))
    n, half = grid.config.resolution, 0.5 * int(grid.cells.amax())
    front = grid.cells > half
    at = torch.stack([grid.cells % n, grid.cells // n % n, grid.cells // (n * n)], dim=-1)[front]
    samples = torch.cat([(at + 0.5) / n, torch.rand(50, 3)])
    optical_depth = torch.cat(
        [torch.full((int(front.sum()),), 3.0), torch.full((50,), 4.0)]
    )  # e^-3 is in sight, e^-4 is not
    generator = torch.Generator().manual_seed(0)
    drawn = small_model().occupancy
    for _ in range(300):
        grid.update(Solid(), codes, generator)
        grid.mark_visible(samples, optical_depth)
    drawn.load(drawable_state(grid.state()))
    assert torch.equal(drawn.occupied, front)
    assert grid.occupied.all(), "cells that are not rendered are still trained"


def test_the_layer_of_candidate_cells_has_no_thin_places(model: AvatarModel) -> None:
    """Where cell borders run along the skin, a thin layer would have gaps."""
    canonical, grid = model.warp.canonical, model.occupancy
    corners = canonical.vertices[canonical.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = torch.nn.functional.normalize(normal, dim=-1)
    for depth in (0.0, 0.5 * INSIDE_DEPTH, 0.95 * INSIDE_DEPTH):
        assert grid.contains(corners.mean(dim=1) - depth * normal).float().mean() > 0.999


def test_update_keeps_dense_cells_and_drops_empty_ones(model: AvatarModel) -> None:
    grid, generator = model.occupancy, torch.Generator().manual_seed(0)
    for _ in range(40):
        grid.update(Half(), NO_CODES, generator)
    x, margin = grid.warp.box.normalise(centres(grid))[:, 0], 1.0 / grid.config.resolution
    assert grid.occupied[x < 0.5 - margin].all()
    assert not grid.occupied[x > 0.5 + margin].any()
    kept = centres(grid)[x < 0.5 - margin]
    assert grid.contains(kept).all()
    assert not grid.contains(centres(grid)[x > 0.5 + margin]).any()


def test_old_density_decays_slowly(model: AvatarModel) -> None:
    grid, generator = model.occupancy, torch.Generator().manual_seed(0)
    grid.value.fill_(0.5)
    left = grid.warp.box.normalise(centres(grid))[:, 0] > 0.6
    grid.update(Half(), NO_CODES, generator)
    torch.testing.assert_close(grid.value[left], torch.full_like(grid.value[left], 0.5 * grid.config.decay))


def test_the_posed_cells_follow_the_jaw(model: AvatarModel) -> None:
    grid, warp = model.occupancy, model.warp
    for jaw in (0.0, 0.9):
        head = model.pose(pose(open_head(), jaw=jaw))
        cells = grid.posed(head)
        assert cells[warp.box.cell_of(head.vertices, warp.resolution)].float().mean() > 0.95


def test_state_round_trip(model: AvatarModel) -> None:
    alpha = torch.zeros((48, 48))
    alpha[:, :24] = 1.0
    look(model, alpha)
    model.occupancy.update(Half(), NO_CODES, torch.Generator().manual_seed(0))
    other = small_model().occupancy
    other.load({name: tensor.clone() for name, tensor in model.occupancy.state().items()})
    assert torch.equal(other.dense, model.occupancy.dense)
    head = model.pose(pose(open_head(), jaw=0.5))
    assert torch.equal(other.posed(head), model.occupancy.posed(head))

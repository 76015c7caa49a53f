"""Nearest-triangle kernels, candidates and queries, against brute force."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from insta_runtime.config import AvatarConfig, OccupancyConfig, WarpConfig
from insta_runtime.native.occupancy import occupancy_struct
from insta_runtime.warp.nearest import Nearest, nearest_brute_force
from tests.support.posed_person import DEFAULT, POISON, Posed, band_points, model_of, random_state, run
from tests.support.small_person import pose

MANY = AvatarConfig(warp=WarpConfig(cell=0.025, candidates=64), occupancy=OccupancyConfig(resolution=24))

ROUNDING = 5e-6  # metres; the squared distance of the reference is a difference of squares
SENTINEL = -1


@cache
def posed_on(device: torch.device, config: AvatarConfig = DEFAULT) -> Posed:
    model = model_of(device, config)
    return run(model, [random_state(model.head, seed) for seed in (11, 12)])


def query(posed: Posed, frame: int, points: torch.Tensor) -> Nearest:
    """Results of the query kernel, in arrays that were filled with invalid values."""
    n, heads = len(points), posed.heads
    triangle = torch.full((n,), POISON, dtype=torch.int32, device=points.device)
    barycentrics, distance = torch.full_like(points, torch.nan), torch.full_like(points[:, 0], torch.nan)
    arguments = (heads.head, heads.poses, frame, points.contiguous(), n, triangle, barycentrics, distance)
    heads.kernels.launch("nearest_query", *arguments, items=n)
    return Nearest(triangle.long(), barycentrics, distance)


@pytest.mark.parametrize("frame", [0, 1])
def test_band_points_find_their_nearest_triangle(device: torch.device, frame: int) -> None:
    posed = posed_on(device)
    points = band_points(posed, frame, 700)
    found = query(posed, frame, points)
    vertices, faces = posed.array("vertices")[frame], posed.model.rig.faces
    truth = nearest_brute_force(points, vertices, faces)
    too_far = found.distance - truth.distance
    assert float(too_far.min()) > -ROUNDING
    assert float(too_far.quantile(0.98)) < ROUNDING
    assert float(too_far.max()) < 0.004  # inside the mouth and behind the lids a row cannot hold all near triangles

    b = found.barycentrics
    assert float(b.min()) >= 0.0
    torch.testing.assert_close(b.sum(-1), torch.ones_like(b[:, 0]), atol=1e-5, rtol=0)
    surface = (vertices[faces[found.triangle]] * b[..., None]).sum(dim=1)
    torch.testing.assert_close((points - surface).norm(dim=-1), found.distance, atol=1e-6, rtol=1e-4)


def test_strong_expressions_are_exact_and_leave_no_state(device: torch.device) -> None:
    """A wide open mouth and shut lids are as exact as a neutral face, and do not affect the next pose."""
    model = model_of(device, DEFAULT)
    rest, strong = pose(model.head), pose(model.head, jaw=1.0, smile=0.5, blink=1.0)
    posed = run(model, [rest, strong])
    heads = posed.heads
    for frame in range(2):
        points = band_points(posed, frame, 700)
        truth = nearest_brute_force(points, posed.array("vertices")[frame], model.rig.faces)
        too_far = query(posed, frame, points).distance - truth.distance
        assert float(too_far.min()) > -ROUNDING
        assert float(too_far.quantile(0.98)) < ROUNDING
        assert float(too_far.max()) < 0.004

    cells = posed.array("cell")[0, : int(heads.count[0])].long()
    at_rest = posed.array("candidates")[0][posed.array("row")[0][cells].long()]
    space = occupancy_struct(heads.kernels, model.occupancy, model.occupancy.state())
    for _ in range(2):  # alternate between two expressions
        heads.states.copy_(heads.states.flip(0))
        heads.run(space)
    assert torch.equal(posed.array("candidates")[0][posed.array("row")[0][cells].long()], at_rest)


def test_rows_ascend_and_hold_each_triangle_once(device: torch.device) -> None:
    """The upper half of a word is the distance to the cell's centre as fp16, rounded down."""
    posed = posed_on(device)
    count, warp = int(posed.heads.count[0]), posed.model.warp
    chosen = torch.randperm(count)[:200].to(device)
    rows = posed.array("candidates")[0, :count][chosen].long()
    words = rows & 0xFFFFFFFF
    assert bool((words[:, 1:] >= words[:, :-1]).all())
    valid = rows != SENTINEL
    assert bool(valid[:, 0].all())
    triangle = words & 0xFFFF
    centres = warp.box.cell_centres(posed.array("cell")[0, :count][chosen].long(), warp.resolution)
    stored = (words >> 16).to(torch.int16).view(torch.float16).float()
    for i in range(0, len(rows), 10):
        own = triangle[i][valid[i]]
        assert len(own.unique()) == len(own)
        alone = [
            nearest_brute_force(centres[i : i + 1], posed.array("vertices")[0], posed.model.rig.faces[t][None])
            for t in own
        ]
        exact = torch.cat([nearest.distance for nearest in alone])
        # Rounding down loses up to 2^-10 of the distance.
        assert bool((stored[i][valid[i]] <= exact + ROUNDING).all())
        assert bool((stored[i][valid[i]] >= exact * (1 - 2.0**-10) - ROUNDING).all())


def test_a_row_that_is_not_full_is_exact(device: torch.device) -> None:
    """If a row holds all possibly nearest triangles, the distance is that of brute force."""
    posed = posed_on(device)
    points = band_points(posed, 0, 700)
    warp = posed.model.warp
    row = posed.array("row")[0][warp.box.cell_of(points, warp.resolution)].long()
    full = (posed.array("candidates")[0][row] != SENTINEL).all(dim=1)
    some = points[~full]
    assert len(some) > 300
    truth = nearest_brute_force(some, posed.array("vertices")[0], posed.model.rig.faces)
    torch.testing.assert_close(query(posed, 0, some).distance, truth.distance, atol=ROUNDING, rtol=0)


def test_large_cells_and_long_rows(device: torch.device) -> None:
    """25 mm cells find more triangles than a pool can hold; 64 candidates need two passes of a packet."""
    posed = posed_on(device, MANY)
    points = band_points(posed, 1, 600)
    truth = nearest_brute_force(points, posed.array("vertices")[1], posed.model.rig.faces)
    too_far = query(posed, 1, points).distance - truth.distance
    assert float(too_far.min()) > -ROUNDING
    assert float(too_far.quantile(0.5)) < ROUNDING
    assert float(too_far.quantile(0.95)) < 0.002


def test_points_outside_the_band_have_no_triangle(device: torch.device) -> None:
    posed = posed_on(device)
    corner = posed.model.warp.box.origin
    points = torch.stack([corner + 1e-3, corner - 1.0, corner + 9.0, torch.full_like(corner, torch.nan)])
    found = query(posed, 0, points)
    assert set(found.triangle.tolist()) == {-1}
    assert not found.barycentrics.any()
    assert bool(found.distance.isinf().all())


@pytest.mark.parametrize("kind", ["a point", "a line", "a sliver"])
def test_degenerate_triangles(device: torch.device, kind: str) -> None:
    """A triangle without area is treated as its longest edge or a point, as in brute force."""
    model = model_of(device, DEFAULT)
    posed = run(model, [random_state(model.head, 13)])
    heads, vertices, faces = posed.heads, posed.array("vertices"), model.rig.faces
    some = torch.randint(len(faces), (400,), device=device)
    a, b, c = faces[some].unbind(1)
    if kind == "a point":
        vertices[0, b] = vertices[0, a]
        vertices[0, c] = vertices[0, a]
    elif kind == "a line":
        vertices[0, c] = 0.5 * (vertices[0, a] + vertices[0, b])
    else:
        vertices[0, c] = vertices[0, b] + 1e-6
    for name, items in (("triangle_frames", len(faces)), ("leaf_spheres", 32 * 512)):
        heads.kernels.launch(name, heads.head, heads.poses, items=items)
    heads.choose_candidates()
    points = band_points(posed, 0, 600)
    truth = nearest_brute_force(points, vertices[0], faces)
    too_far = query(posed, 0, points).distance - truth.distance
    assert float(too_far.min()) > -2e-5
    assert float(too_far.quantile(0.95)) < 2e-5

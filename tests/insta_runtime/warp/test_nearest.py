"""Nearest triangles: brute force against an independent reference, the candidate grid against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from insta_runtime.config import AvatarConfig, OccupancyConfig
from insta_runtime.render.model import AvatarModel
from insta_runtime.warp.nearest import CandidateGrid, Nearest, TriangleLeaves, TriangleSoup, nearest_brute_force
from insta_runtime.warp.warp import PosedHead
from tests.support.small_person import open_head, pose, small_model


def reference_distance(p: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """Distance of a point to a triangle in float64: the plane where its foot lies inside, else the nearest edge."""

    def to_segment(start: np.ndarray, end: np.ndarray) -> float:
        edge = end - start
        length = edge @ edge
        t = np.clip((p - start) @ edge / length, 0.0, 1.0) if length > 0 else 0.0
        return float(np.linalg.norm(p - start - t * edge))

    best = min(to_segment(a, b), to_segment(b, c), to_segment(c, a))
    normal = np.cross(b - a, c - a)
    if np.linalg.norm(normal) > 1e-10:
        height = (p - a) @ normal / np.linalg.norm(normal)
        foot = p - height * normal / np.linalg.norm(normal)
        if all(np.cross(end - start, foot - start) @ normal >= 0 for start, end in ((a, b), (b, c), (c, a))):
            best = min(best, abs(height))
    return best


ROUNDING = 5e-5  # metres, of float32 where triangles are slivers


def assert_nearest(found: Nearest, points: torch.Tensor, vertices: torch.Tensor, faces: torch.Tensor) -> None:
    corners = vertices[faces].double().numpy()
    for i, point in enumerate(points.double().numpy()):
        truth = min(reference_distance(point, *triangle) for triangle in corners)
        assert abs(float(found.distance[i]) - truth) < ROUNDING
    weights = found.barycentrics
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(points)))
    surface = (vertices[faces[found.triangle]] * weights[..., None]).sum(dim=1)
    torch.testing.assert_close((points - surface).norm(dim=-1), found.distance, atol=ROUNDING, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["soup", "lines", "points", "slivers"]))
def test_brute_force_agrees_with_an_independent_reference(seed: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand((5, 3, 3), generator=generator) * 0.05
    if kind == "lines":
        corners[:3, 2] = corners[:3, 0] + torch.rand((3, 1), generator=generator) * (corners[:3, 1] - corners[:3, 0])
    elif kind == "points":
        corners[:3] = corners[:3, :1]
    elif kind == "slivers":
        corners[:, 2] = corners[:, 1] + 1e-5
    vertices, faces = corners.view(-1, 3), torch.arange(15).view(5, 3)
    weights = torch.rand((4, 3), generator=generator)
    on_surface = (corners[:4] * (weights / weights.sum(-1, keepdim=True))[..., None]).sum(dim=1)
    points = torch.cat([torch.rand((6, 3), generator=generator) * 0.1 - 0.025, on_surface, vertices[:2]])
    assert_nearest(nearest_brute_force(points, vertices, faces), points, vertices, faces)


@pytest.fixture(scope="module")
def model() -> AvatarModel:
    """The open head with the default grid: 8 mm, 24 candidates."""
    return small_model(config=AvatarConfig(occupancy=OccupancyConfig(resolution=24)))


@pytest.fixture(scope="module")
def head(model: AvatarModel) -> PosedHead:
    return model.pose(pose(open_head(), jaw=0.6, smile=0.7))


@pytest.fixture(scope="module")
def band(model: AvatarModel, head: PosedHead) -> torch.Tensor:
    """2000 points of the cells around the posed head that rays sample, a third of them near mouth and eyes."""
    warp, generator = model.warp, torch.Generator().manual_seed(1)
    cells = model.occupancy.posed(head).nonzero()[:, 0]
    cells = cells[torch.randint(len(cells), (1400,), generator=generator)]
    fine = head.vertices[model.warp.masks.amax(dim=-1) > 0.5]
    cells = torch.cat(
        [cells, warp.box.cell_of(fine[torch.randperm(len(fine), generator=generator)[:600]], warp.resolution)]
    )
    centres = warp.box.cell_centres(cells, warp.resolution)
    return centres + (torch.rand((2000, 3), generator=generator) - 0.5) * warp.box.side / warp.resolution


def test_candidates_find_the_nearest_triangle(model: AvatarModel, head: PosedHead, band: torch.Tensor) -> None:
    """A cell lists only a few of the triangles around it, so some samples follow a neighbour of their nearest triangle.

    What counts is where they end up in canonical space: well within the finest cells of the field (1 mm).  Inside the
    mouth and behind the lids, where layers lie a millimetre apart, the distance alone may err by nearly that much.
    """
    warp, faces = model.warp, model.warp.canonical.faces
    grid = warp.candidate_grid(head.soup, warp.box.cell_of(band, warp.resolution).unique(), warp.resolution)
    found, truth = grid.query(band), nearest_brute_force(band, head.vertices, faces)

    def canonical(nearest: Nearest) -> torch.Tensor:
        corner, b = faces[nearest.triangle], nearest.barycentrics[..., None]
        offset = band - (head.vertices[corner] * b).sum(dim=1)
        linear = (head.vertex_maps[corner] * b[..., None]).sum(dim=1)
        return (warp.canonical.vertices[corner] * b).sum(dim=1) + torch.einsum("nij,nj->ni", linear, offset)

    too_far = found.distance - truth.distance
    displaced = (canonical(found) - canonical(truth)).norm(dim=-1)
    assert too_far.min() > -1e-6
    everywhere, near_mouth_and_eyes = slice(0, 1400), slice(1400, 2000)
    assert float(too_far[everywhere].quantile(0.95)) < 0.25e-3
    assert float(displaced[everywhere].quantile(0.95)) < 0.04e-3
    assert float(too_far[near_mouth_and_eyes].quantile(0.95)) < 0.8e-3
    assert float(displaced[near_mouth_and_eyes].quantile(0.95)) < 0.15e-3


def test_candidates_reused_where_nothing_moved_are_the_same() -> None:
    model = small_model()
    warp, faces = model.warp, model.warp.canonical.faces
    soup = model.pose(pose(open_head(), jaw=0.6, smile=0.7)).soup
    wanted = torch.arange(0, warp.resolution**3, 5)
    points = warp.box.cell_centres(wanted, warp.resolution)
    anew = warp.candidate_grid(soup, wanted, warp.resolution)
    taken = warp.candidate_grid(soup, wanted, warp.resolution, warp.neutral_grid)
    kept = warp.neutral_grid.candidates[warp.neutral_grid.row[wanted].long()]
    assert (taken.candidates == kept).all(dim=1).float().mean() > 0.3, "the scalp and the ears stay"
    assert not torch.equal(taken.candidates, kept), "the jaw moves"
    torch.testing.assert_close(taken.query(points).distance, anew.query(points).distance, atol=1e-4, rtol=0)

    rest = TriangleSoup(warp.neutral, faces)
    again = warp.candidate_grid(rest, wanted, warp.resolution, warp.neutral_grid)
    assert torch.equal(again.candidates, warp.candidate_grid(rest, wanted, warp.resolution).candidates)


def test_a_grid_that_lists_every_triangle_is_exact() -> None:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand((6, 1, 3), generator=generator) + 0.05 * torch.randn((6, 3, 3), generator=generator)
    vertices, faces = corners.view(-1, 3), torch.arange(18).view(6, 3)
    grid = CandidateGrid(
        TriangleSoup(vertices, faces), TriangleLeaves(vertices, faces), torch.zeros(3), 0.25, 4, torch.arange(64), 6
    )
    points = torch.rand((300, 3), generator=generator)
    torch.testing.assert_close(grid.query(points).distance, nearest_brute_force(points, vertices, faces).distance)
    nothing = grid.query(torch.zeros((0, 3)))
    assert nothing.triangle.shape == nothing.distance.shape == (0,)
    assert nothing.barycentrics.shape == (0, 3)


def test_leaves_hold_every_triangle_once() -> None:
    warp = small_model().warp
    members = warp.leaves.members
    assert torch.equal(members.unique(), torch.arange(len(warp.canonical.faces)))
    spread = warp.canonical.vertices[warp.canonical.faces].mean(dim=1)[members]
    size = (spread.amax(dim=1) - spread.amin(dim=1)).norm(dim=-1)
    assert float(size.median()) < 0.03  # compact: the head is 0.3 m tall


def test_within_includes_every_near_point_and_excludes_most_of_space() -> None:
    head = small_model().rig.canonical(small_model().shape, 0.0)
    soup, reach = TriangleSoup(head.vertices, head.faces), 0.02
    middle, side = head.vertices.mean(dim=0), 0.6
    points = middle + side * (torch.rand((1000, 3), generator=torch.Generator().manual_seed(0)) - 0.5)
    found = TriangleLeaves(head.vertices, head.faces).within(reach, points, soup)
    near = nearest_brute_force(points, head.vertices, head.faces).distance <= reach
    assert found[near].all()
    assert near.sum() > 10
    assert found.float().mean() < 0.5

"""Triangle frames and the linear maps built from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from insta_runtime.head.rig import rotation_matrix
from insta_runtime.warp.frames import CanonicalMaps, triangle_frames

TETRAHEDRON = torch.tensor([[0.0, 0, 0], [0.02, 0, 0], [0, 0.02, 0], [0, 0, 0.02]])
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])  # outward


def rotation(seed: int) -> torch.Tensor:
    return rotation_matrix(torch.randn(3, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_frames_are_orthonormal_right_handed_and_follow_the_triangle(seed: int) -> None:
    corners = torch.rand((20, 3, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.02
    frames, areas = triangle_frames(corners.view(-1, 3), torch.arange(60).view(20, 3))
    torch.testing.assert_close(frames @ frames.transpose(1, 2), torch.eye(3).double().expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(frames), torch.ones(20).double())
    a, b, c = corners.unbind(1)
    cross = torch.linalg.cross(b - a, c - a)
    torch.testing.assert_close(areas, 0.5 * cross.norm(dim=-1))
    torch.testing.assert_close(frames[:, :, 0] * (b - a).norm(dim=-1, keepdim=True), b - a)
    torch.testing.assert_close(frames[:, :, 2] * cross.norm(dim=-1, keepdim=True), cross)


def test_the_normal_points_outward() -> None:
    frames, _ = triangle_frames(TETRAHEDRON, FACES)
    outward = TETRAHEDRON[FACES].mean(dim=1) - TETRAHEDRON.mean(dim=0)
    assert ((frames[:, :, 2] * outward).sum(-1) > 0).all()


@pytest.mark.parametrize("corners", [[0, 0, 0], [0, 0, 1], [0, 1, 4]])  # a point, a doubled corner, a line
def test_a_triangle_without_area_has_the_identity_frame(corners: list[int]) -> None:
    vertices = torch.cat([TETRAHEDRON, TETRAHEDRON[:2].mean(dim=0, keepdim=True)])
    frames, areas = triangle_frames(vertices, torch.tensor([corners]))
    assert torch.equal(frames[0], torch.eye(3))
    assert float(areas) == 0.0


def test_maps_undo_rotation_and_scale() -> None:
    maps = CanonicalMaps(TETRAHEDRON, FACES)
    turn = rotation(1)
    for scale in (1.0, 0.7, 1.6):
        linear = maps.triangle_maps(scale * TETRAHEDRON @ turn.T + 0.3)
        torch.testing.assert_close(linear, (turn.T / scale).expand(4, 3, 3), atol=2e-5, rtol=0)
        torch.testing.assert_close(maps.average(linear), (turn.T / scale).expand(4, 3, 3), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("scale", "expected"), [(0.01, 2.0), (100.0, 0.5)])
def test_the_scale_of_a_squashed_or_enlarged_triangle_is_bounded(scale: float, expected: float) -> None:
    linear = CanonicalMaps(TETRAHEDRON, FACES).triangle_maps(scale * TETRAHEDRON)
    torch.testing.assert_close(torch.linalg.det(linear), torch.full((4,), expected**3))


def test_average_weighs_triangles_by_canonical_area() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [0.03, 0, 0], [0, 0.01, 0], [-0.01, 0, 0]])
    maps = CanonicalMaps(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))  # areas 3 : 1
    average = maps.average(torch.stack([torch.eye(3), 5.0 * torch.eye(3)]))
    torch.testing.assert_close(average[:, 0, 0], torch.tensor([2.0, 1.0, 2.0, 5.0]))

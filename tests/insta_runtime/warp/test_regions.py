"""Regions and neighbours of triangles, and the warp of INSTA that uses them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from insta_runtime.geometry import rotation_matrix
from insta_runtime.render.model import AvatarModel
from insta_runtime.warp.nearest import Nearest, nearest_brute_force
from insta_runtime.warp.regions import EYES, FACE, LIPS, OTHER, edge_neighbours, triangle_regions
from insta_runtime.warp.warp import PosedHead
from tests.support.small_person import SMALL, neutral_shape, open_head, pose

STRIP = torch.tensor([[0, 1, 2], [2, 1, 3], [2, 3, 4]])


def model_with(**changes: str) -> AvatarModel:
    config = replace(SMALL, warp=replace(SMALL.warp, **changes))
    return AvatarModel(open_head(), neutral_shape(open_head()), config, torch.device("cpu"))


def points_around(head: PosedHead, count: int = 500) -> tuple[torch.Tensor, torch.Tensor, Nearest]:
    """Points within 2 cm of the head, directions, and the nearest surface points."""
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randint(len(head.vertices), (count,), generator=generator)
    points = head.vertices[chosen] + 0.02 * (torch.rand((count, 3), generator=generator) - 0.5)
    directions = torch.nn.functional.normalize(torch.randn((count, 3), generator=generator), dim=-1)
    return points, directions, nearest_brute_force(points, head.vertices, head.warp.canonical.faces)


def test_neighbours_across_each_edge() -> None:
    assert edge_neighbours(STRIP).tolist() == [[0, 1, 0], [0, 1, 2], [1, 2, 2]]


def test_most_triangles_of_the_head_have_three_neighbours_that_share_two_corners() -> None:
    faces = torch.from_numpy(open_head().faces)
    beyond = edge_neighbours(faces)
    other = beyond != torch.arange(len(faces))[:, None]
    assert other.float().mean() > 0.95
    shared = (faces[beyond][..., None] == faces[:, None, None, :]).any(dim=-1).sum(dim=-1)
    assert (shared[other] == 2).all()


def test_one_corner_decides_the_region_and_lips_override_eyes_and_face() -> None:
    none, first, all_of = torch.zeros(5), torch.tensor([1.0, 0, 0, 0, 0]), torch.ones(5)
    assert triangle_regions(STRIP, none, none, none).tolist() == [OTHER] * 3
    assert triangle_regions(STRIP, all_of, none, first).tolist() == [LIPS, FACE, FACE]
    assert triangle_regions(STRIP, none, all_of, first).tolist() == [LIPS, EYES, EYES]


@pytest.mark.parametrize("blend", ["neighbours", "triangle"])
@pytest.mark.parametrize("scale", ["length", "area", "none"])
def test_the_canonical_head_is_not_warped_and_a_moved_one_is_warped_back(blend: str, scale: str) -> None:
    warp = model_with(blend=blend, scale=scale).warp
    turn = torch.from_numpy(rotation_matrix(torch.tensor([0.3, -0.5, 0.2]).numpy())).float()
    for rotation, shift in ((torch.eye(3), 0.0), (turn, 0.01)):
        head = warp.pose(warp.canonical.vertices @ rotation.T + shift)
        points, directions, nearest = points_around(head)
        carried = head.inverse_warp(points, directions, nearest)
        torch.testing.assert_close(carried.position, (points - shift) @ rotation, atol=2e-5, rtol=0)
        torch.testing.assert_close(carried.direction, directions @ rotation, atol=2e-4, rtol=0)


def test_neighbours_are_blended_on_the_face_only() -> None:
    one, several = model_with(blend="triangle", scale="none").warp, model_with(blend="neighbours", scale="none").warp
    vertices = AvatarModel.pose(model_with(), pose(open_head(), jaw=0.6, smile=0.8)).vertices
    first, second = one.pose(vertices), several.pose(vertices)
    points, directions, nearest = points_around(first)
    apart = (
        first.inverse_warp(points, directions, nearest).position
        - second.inverse_warp(points, directions, nearest).position
    ).norm(dim=-1)
    face = several.regions[nearest.triangle] == FACE
    assert apart[~face].max() < 1e-6
    assert apart[face].max() > 1e-4


def test_the_area_ratio_scales_only_around_the_eyes() -> None:
    warp = model_with(scale="area").warp
    maps = warp.maps.triangle_maps(1.1 * warp.canonical.vertices)
    size = torch.linalg.det(maps).pow(1.0 / 3.0)
    eyes = (warp.regions == EYES) & (warp.maps.areas > 1e-9)
    torch.testing.assert_close(size[eyes], torch.full_like(size[eyes], 1.1**-2), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        size[warp.regions != EYES], torch.ones_like(size[warp.regions != EYES]), atol=1e-3, rtol=0
    )

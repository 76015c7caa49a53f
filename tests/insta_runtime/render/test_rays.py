"""Camera rays: they and the projection of a point are inverse to each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from insta_runtime.geometry import camera_vertices
from insta_runtime.head import HeadRig
from insta_runtime.render.raster import rasterise
from insta_runtime.render.rays import farthest_around, pixel_rays, rotation_matrix, slant
from insta_runtime.types import Camera, HeadState
from tests.support.small_person import camera, neutral_shape, open_head, pose

ODD = Camera(50.0, 60.0, 13.2, 9.7, 32, 24)
EVERY = torch.arange(32 * 24)


def test_rays_end_at_points_that_project_to_their_pixels() -> None:
    state = HeadState(np.zeros(52), rotation=np.array([2.9, 0.3, -0.2]), translation=np.array([0.03, -0.02, 0.5]))
    rays = pixel_rays(state, ODD, EVERY, torch.full((len(EVERY),), torch.inf), 0.0)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(len(rays)))
    x, y, z = camera_vertices(rays.origins + 0.7 * rays.directions, state).unbind(-1)
    torch.testing.assert_close(x / z * ODD.fx + ODD.cx, EVERY % 32 + 0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(y / z * ODD.fy + ODD.cy, EVERY // 32 + 0.5, atol=1e-3, rtol=0)
    assert (z > 0).all()
    assert rays.far.isinf().all()


def test_the_ray_of_a_vertex_meets_the_vertex() -> None:
    state = pose(open_head(), jaw=0.3, yaw=0.3)
    vertices = HeadRig(open_head()).pose(neutral_shape(open_head()), state).vertices[::50]
    seen = camera_vertices(vertices, state)
    for vertex, (x, y, z) in zip(vertices, seen.tolist(), strict=True):
        # A camera whose only pixel has its centre where the vertex lands.
        view = Camera(100.0, 100.0, 0.5 - 100.0 * x / z, 0.5 - 100.0 * y / z, 1, 1)
        ray = pixel_rays(state, view, torch.zeros(1, dtype=torch.int64), torch.tensor([z]), 0.025)
        length = float(torch.tensor([x, y, z]).norm())
        torch.testing.assert_close(ray.origins[0] + length * ray.directions[0], vertex, atol=1e-5, rtol=0)
        assert float(ray.far) == pytest.approx(length + 0.025, abs=1e-5)


def test_slant_turns_depth_into_distance() -> None:
    lengths = slant(ODD, EVERY)
    assert lengths.min() >= 1.0
    corner = math.hypot((0.5 - 13.2) / 50, (0.5 - 9.7) / 60, 1.0)
    assert float(lengths[0]) == pytest.approx(corner, rel=1e-6)


def test_rays_and_rasteriser_agree_on_the_surface() -> None:
    head, state, view = open_head(), pose(open_head(), jaw=0.4, yaw=-0.3), camera(40)
    mesh = HeadRig(head).pose(neutral_shape(head), state)
    raster = rasterise(camera_vertices(mesh.vertices, state), mesh.faces, view)
    pixels = raster.mask.view(-1).nonzero()[:, 0]
    depth = raster.depth.view(-1)[pixels]
    rays = pixel_rays(state, view, pixels, depth, 0.025)
    points = rays.origins + (depth * slant(view, pixels))[:, None] * rays.directions
    torch.testing.assert_close(points, raster.interpolate(mesh.vertices).view(-1, 3)[pixels], atol=2e-5, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, math.pi])
def test_rotation_is_by_the_angle_about_the_axis(angle: float) -> None:
    axis = np.array([2.0, -1.0, 2.0]) / 3.0
    matrix = rotation_matrix((axis * angle).astype(np.float32))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(matrix @ axis, axis, atol=1e-6)
    across = np.cross(axis, [0.0, 0.0, 1.0])
    across /= np.linalg.norm(across)
    np.testing.assert_allclose(
        matrix @ across, math.cos(angle) * across + math.sin(angle) * np.cross(axis, across), atol=1e-6
    )


def test_rays_beside_the_outline_of_the_mesh_do_not_end() -> None:
    depth = torch.full((9, 11), 0.6)
    depth[:, 7:] = torch.inf
    depth[4, 2] = 0.7
    around = farthest_around(depth)
    assert around[:, 6:].isinf().all(), "a pixel within the outline"
    assert (around[3:6, 1:4] == 0.7).all()
    assert (around[:3, :6] == 0.6).all()
    large = torch.full((4, 512), 0.6)
    large[:, 300:] = torch.inf
    assert farthest_around(large)[:, 298:].isinf().all()
    assert farthest_around(large)[:, :298].isfinite().all(), "two of 512"

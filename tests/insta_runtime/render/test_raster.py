"""The rasteriser against a brute-force reference that tests every pixel against every triangle in float64."""

from __future__ import annotations

import pytest
import torch

from insta_runtime.render.raster import NEAR, rasterise
from insta_runtime.types import Camera

CAMERA = Camera(60.0, 55.0, 31.0, 22.5, 64, 48)


def brute_force(vertices, faces, camera):
    """Depth (F, H, W), infinite outside; and the smallest barycentric weight (F, H, W), all in float64."""
    v = vertices.double()
    xy = torch.stack([camera.fx * v[:, 0] / v[:, 2] + camera.cx, camera.fy * v[:, 1] / v[:, 2] + camera.cy], 1)
    py, px = torch.meshgrid(
        torch.arange(camera.height).double() + 0.5, torch.arange(camera.width).double() + 0.5, indexing="ij"
    )
    a, b, c = (xy[faces[:, i]][:, :, None, None] for i in range(3))

    def cross(p, q, r_x, r_y):
        return (q[:, 0] - p[:, 0]) * (r_y - p[:, 1]) - (q[:, 1] - p[:, 1]) * (r_x - p[:, 0])

    area = cross(a, b, c[:, 0], c[:, 1])
    flat = torch.stack([cross(b, c, px, py), cross(c, a, px, py), cross(a, b, px, py)], -1) / area[..., None]
    weights = flat / v[faces][:, None, None, :, 2]
    depth = 1.0 / weights.sum(-1)
    inside = (flat >= 0).all(-1) & (v[faces][:, :, 2] > NEAR).all(1)[:, None, None]
    return torch.where(inside, depth, torch.inf), flat.abs().amin(-1), weights / weights.sum(-1, keepdim=True)


def soup(seed, count, spread):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 1, 3, generator=generator) * torch.tensor([2.4, 2.0, 3.0])
    centres = centres - torch.tensor([1.2, 1.0, -1.0])
    corners = centres + spread * torch.randn(count, 3, 3, generator=generator)
    return corners.reshape(-1, 3), torch.arange(3 * count).view(count, 3)


@pytest.mark.parametrize(("seed", "count", "spread"), [(0, 60, 0.3), (1, 200, 0.05), (2, 25, 1.5), (3, 400, 0.01)])
def test_triangle_soup_matches_brute_force(seed, count, spread):
    vertices, faces = soup(seed, count, spread)
    raster = rasterise(vertices, faces, CAMERA)
    depth, margin, weights = brute_force(vertices, faces, CAMERA)
    nearest, winner = depth.min(0)
    # Pixels on an edge of some triangle, or where two triangles are equally near, may fall either way.
    second = depth.scatter(0, winner[None], torch.inf).min(0).values
    clear = (margin > 1e-3).all(0) & (second - nearest > 1e-4)
    clear |= (margin > 1e-3).all(0) & ~torch.isfinite(nearest)
    assert clear.float().mean() > 0.6
    assert torch.equal(raster.mask[clear], torch.isfinite(nearest)[clear])
    seen = clear & raster.mask
    assert seen.any()
    assert torch.equal(raster.triangle[seen], winner[seen])
    torch.testing.assert_close(raster.depth[seen], nearest[seen].float(), rtol=1e-4, atol=1e-5)
    expected = weights.gather(0, winner[None, ..., None].expand(1, -1, -1, 3))[0]
    assert (raster.barycentrics[seen] - expected[seen]).abs().max() < 2e-3
    assert torch.isinf(raster.depth[~raster.mask]).all()
    assert (raster.barycentrics[~raster.mask] == 0).all()


def test_interpolation_is_perspective_correct():
    """Interpolated vertex positions are the points that the pixel rays hit."""
    vertices, faces = soup(5, 80, 0.4)
    raster = rasterise(vertices, faces, CAMERA)
    points = raster.interpolate(vertices)[raster.mask]
    rows, columns = raster.mask.nonzero().unbind(1)
    torch.testing.assert_close(CAMERA.fx * points[:, 0] / points[:, 2] + CAMERA.cx, columns + 0.5, atol=0.05, rtol=0)
    torch.testing.assert_close(CAMERA.fy * points[:, 1] / points[:, 2] + CAMERA.cy, rows + 0.5, atol=0.05, rtol=0)
    torch.testing.assert_close(points[:, 2], raster.depth[raster.mask], rtol=1e-4, atol=1e-4)


def test_a_closed_surface_has_no_holes_between_its_triangles():
    n = 41
    ys, xs = torch.meshgrid(torch.linspace(-2, 2, n), torch.linspace(-2, 2, n), indexing="ij")
    xs = xs + 0.02 * torch.sin(7 * ys)
    vertices = torch.stack([xs, ys, 2 + 0.1 * torch.sin(3 * xs)], -1).reshape(-1, 3)
    corner = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).reshape(-1)
    faces = torch.cat(
        [torch.stack([corner, corner + 1, corner + n], 1), torch.stack([corner + 1, corner + n + 1, corner + n], 1)]
    )
    assert rasterise(vertices, faces, CAMERA).mask.all()


def test_behind_near_degenerate_and_outside_are_dropped():
    vertices = torch.tensor(
        [
            [-1.0, -1, -2],
            [1, -1, -2],
            [0, 1, -2],
            [-1, -1, 2],
            [1, -1, 2],
            [0, 1, 0.005],
            [9, 9, 2],
            [9, 8, 2],
            [8, 9, 2],
        ]
    )
    faces = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [3, 4, 4], [3, 3, 3]])
    raster = rasterise(vertices, faces, CAMERA)
    assert not raster.mask.any()
    assert raster.interpolate(vertices).shape == (48, 64, 3)
    assert not rasterise(vertices, faces[:0], CAMERA).mask.any()


def test_back_faces_are_kept_unless_culled():
    vertices = torch.tensor([[-1.0, 1, 2], [1, 1, 2], [0, -1, 2]])
    front, back = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 1]])
    assert rasterise(vertices, back, CAMERA).mask.any()
    assert rasterise(vertices, front, CAMERA, cull=True).mask.any()
    assert not rasterise(vertices, back, CAMERA, cull=True).mask.any()


def test_ties_go_to_the_lowest_index_and_the_result_is_deterministic():
    vertices = torch.tensor([[-1.0, 1, 2], [1, 1, 2], [0, -1, 2]])
    faces = torch.tensor([[0, 1, 2]]).repeat(5, 1)
    raster = rasterise(vertices, faces, CAMERA)
    assert set(raster.triangle.unique().tolist()) == {-1, 0}
    soup_vertices, soup_faces = soup(7, 300, 0.2)
    first, second = (rasterise(soup_vertices, soup_faces, CAMERA) for _ in range(2))
    assert torch.equal(first.triangle, second.triangle)
    assert torch.equal(first.barycentrics, second.barycentrics)


def test_interpolate_is_differentiable_to_the_values():
    vertices, faces = soup(8, 30, 0.4)
    values = torch.rand(len(vertices), 2, requires_grad=True)
    rasterise(vertices, faces, CAMERA).interpolate(values).sum().backward()
    assert values.grad is not None
    assert float(values.grad.abs().sum()) > 0

"""Rasterisation kernels against `render.raster.rasterise`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from insta_runtime.geometry import camera_vertices
from insta_runtime.native.posing import THREADS_PER_TRIANGLE
from insta_runtime.render.raster import Raster, rasterise
from insta_runtime.types import Camera, HeadState
from tests.support.posed_person import POISON, Posed, model_of, random_state, run
from tests.support.small_person import camera

BORDER = 5e-4  # share of pixels that may differ because their centres lie on an edge, within rounding
DEPTH = 1e-5  # metres at a distance of 0.6 m, for triangles seen edge-on


def drawn(posed: Posed, view: Camera) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth, triangle and barycentrics of all frames, in arrays that were filled with invalid values."""
    heads, device = posed.heads, posed.model.device
    shape = (heads.frames, view.height, view.width)
    pixels, triangles = heads.frames * view.height * view.width, len(posed.model.rig.faces)
    keys = torch.full(shape, POISON, dtype=torch.int64, device=device)
    depth, triangle = torch.full(shape, torch.nan, device=device), torch.full_like(keys, POISON, dtype=torch.int32)
    barycentrics = torch.full((*shape, 3), torch.nan, device=device)
    launch, head, poses, size = heads.kernels.launch, heads.head, heads.poses, (view.width, view.height)
    launch("clear_pixels", keys, pixels, items=pixels)
    launch("draw_triangles", head, poses, *size, keys, items=THREADS_PER_TRIANGLE * heads.frames * triangles)
    launch("resolve_pixels", head, poses, *size, keys, depth, triangle, barycentrics, items=pixels)
    return depth, triangle, barycentrics


def twin(posed: Posed, frame: int, view: Camera) -> Raster:
    vertices = camera_vertices(posed.array("vertices")[frame], posed.states[frame])
    return rasterise(vertices, posed.model.rig.faces, view)


def assert_same(posed: Posed, view: Camera) -> None:
    depth, triangle, barycentrics = drawn(posed, view)
    for frame in range(posed.heads.frames):
        expected = twin(posed, frame, view)
        same = triangle[frame] == expected.triangle
        assert float((~same).float().mean()) <= BORDER
        covered = same & expected.mask
        assert bool(covered.any())
        torch.testing.assert_close(depth[frame][covered], expected.depth[covered], atol=DEPTH, rtol=0)
        worst = (barycentrics[frame] - expected.barycentrics)[covered].abs().amax(dim=-1)
        assert float(worst.quantile(0.999)) < 2e-3  # slivers, whose barycentrics change within a tenth of a pixel
        nothing = same & ~expected.mask
        assert bool(depth[frame][nothing].isinf().all())
        assert not barycentrics[frame][nothing].any()


@pytest.mark.parametrize("size", [33, 200])
def test_images_are_those_of_the_torch_reference(device: torch.device, size: int) -> None:
    view = replace(camera(size), width=size + 7, cx=size / 2 + 3.3, fy=1.1 * size)
    model = model_of(device)
    assert_same(run(model, [random_state(model.head, seed) for seed in (31, 32)], view), view)


def test_large_triangles(device: torch.device) -> None:
    """A camera a few centimetres from the face: triangles of thousands of pixels, some behind the near plane."""
    view, model = camera(96), model_of(device)
    near = replace(random_state(model.head, 33), translation=torch.tensor([0.0, 0.02, 0.13]).numpy())
    assert_same(run(model, [near], view), view)


def test_posed_heads_have_separate_depth_buffers(device: torch.device) -> None:
    view, model = camera(40), model_of(device)
    posed = run(model, [random_state(model.head, 34)], view)
    depth, triangle = posed.heads.rasterise(40, 40)
    expected_depth, expected_triangle, _ = drawn(posed, view)
    assert torch.equal(depth, expected_depth)
    assert torch.equal(triangle, expected_triangle)
    assert posed.heads.rasterise(40, 40)[0].data_ptr() == depth.data_ptr()


def test_a_vertex_at_the_horizon_drops_its_triangles(device: torch.device) -> None:
    """Neither such a vertex nor one behind the camera causes NaN."""
    view, model = camera(40), model_of(device)
    state = replace(HeadState.neutral(len(model.head.expression_names)), rotation=torch.zeros(3).numpy())
    posed = run(model, [state], view)
    vertices = posed.array("vertices")
    vertices[0, ::50, 2] = -float(state.translation[2])  # in the plane of the camera
    vertices[0, 1::50, 2] -= 5.0
    depth, triangle, barycentrics = drawn(posed, view)
    expected = twin(posed, 0, view)
    assert float((triangle[0] != expected.triangle).float().mean()) <= BORDER * 10
    assert bool((depth > 0.01).all())
    assert bool(barycentrics.isfinite().all())


def test_a_nan_camera_renders_nothing(device: torch.device) -> None:
    view, model = camera(24), model_of(device)
    posed = run(model, [random_state(model.head, 35)], view)
    posed.heads.states[0, len(model.head.expression_names) + 26] = torch.nan
    depth, triangle, _ = drawn(posed, view)
    assert set(triangle.flatten().tolist()) == {-1}
    assert bool(depth.isinf().all())

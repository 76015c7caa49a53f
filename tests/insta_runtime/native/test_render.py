"""Native renderer: against the torch renderer, fused against unfused kernels, and pixel formats."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from insta_runtime.field.view_range import ViewRange
from insta_runtime.learn.torch_trainer import TorchTrainer
from insta_runtime.native.canvas import EARLY_STOP, RING, PixelFormat
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.kernels import Kernels
from insta_runtime.native.renderer import NativeRenderer
from insta_runtime.render.crossfade import FADE_S
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.renderer import Renderer, take_snapshot
from insta_runtime.types import Camera, Float32, HeadState
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, performance, photograph, pose

STATE, VIEW = pose(open_head(), jaw=0.4, yaw=0.2), camera(48)
# dB.  Samples at the borders of cells and triangles differ, most visibly in opaque avatars; GPU weights are fp16.
ALIKE = {"cpu": 38.0, "cuda": 36.0}
SOLID = {"cpu": 45.0, "cuda": 38.0}


@cache
def painted_model(device: torch.device, seed: int = 0, opaque: bool = True) -> AvatarModel:
    """A model with random colours, either ``opaque`` or translucent everywhere."""
    model = AvatarModel(open_head(), neutral_shape(open_head()), SMALL, device, seed)
    with torch.no_grad():
        table = model.field.grid.table
        table.copy_(0.1 * torch.randn(table.shape, generator=torch.Generator().manual_seed(seed)))
        last = model.field.density_net[2]
        assert isinstance(last, torch.nn.Linear)
        last.weight[0] *= 0.2
        last.bias[0] = 3.5 if opaque else 0.0
    # A third of the cells is empty.
    state = model.occupancy.state()
    state["value"][torch.rand(len(state["value"]), generator=torch.Generator().manual_seed(seed)).to(device) < 0.3] = (
        0.0
    )
    model.occupancy.load(state)
    return model


@cache
def kernels_on(device: torch.device) -> Kernels:
    return Kernels(device, avatar_constants(SMALL))


def renderer(model: AvatarModel, **options: Any) -> NativeRenderer:
    return NativeRenderer(model, kernels_on(model.device), **options)


def psnr(ours: Float32, truth: Float32) -> float:
    return float(-10.0 * np.log10(np.square(ours - truth).mean() + 1e-12))


@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_frames_are_those_of_the_torch_reference(device: torch.device, fused: bool, opaque: bool) -> None:
    model = painted_model(device, opaque=opaque)
    native, twin = renderer(model, fused=fused), Renderer(model)
    for state, view in ((STATE, VIEW), (pose(open_head(), smile=1.0, yaw=-0.45), camera(33))):
        ours, truth = native.render(state, view, 3), twin.render(state, view, 3)
        assert truth.rgba[..., 3].max() > 0.4
        assert (ours.frame_id, ours.t_capture_ns, ours.rgba.dtype) == (3, state.t_capture_ns, np.float32)
        assert ours.rgba.shape == truth.rgba.shape
        assert psnr(ours.rgba, truth.rgba) > (SOLID if opaque else ALIKE)[device.type]
        assert (ours.rgba[..., :3] <= ours.rgba[..., 3:] + 1e-5).all(), "premultiplied"


@pytest.mark.parametrize("opaque", [True, False])
def test_the_fused_kernels_render_what_the_chain_renders(device: torch.device, opaque: bool) -> None:
    model = painted_model(device, opaque=opaque)
    fused, chain = renderer(model).render(STATE, VIEW).rgba, renderer(model, fused=False).render(STATE, VIEW).rgba
    # Besides rounding, the fused kernels only omit samples behind EARLY_STOP.
    assert np.abs(fused - chain).max() < 2.0 * EARLY_STOP + (1e-5 if device.type == "cpu" else 4e-3)


def test_unseen_views_are_clamped_as_in_the_torch_renderer(device: torch.device) -> None:
    model = copy.copy(painted_model(device))
    model.code = copy.copy(model.code)
    state, view = pose(open_head(), smile=1.0, yaw=0.6), camera(33)
    free = renderer(model).render(state, view).rgba
    model.code.views = ViewRange(np.array([-0.05, -0.05]), np.array([0.05, 0.05]))
    for fused in (True, False):
        ours, truth = renderer(model, fused=fused).render(state, view), Renderer(model).render(state, view)
        worst = np.sort(np.abs(ours.rgba - truth.rgba).max(axis=-1).ravel())
        assert worst[-20] < 0.1, "except for a few pixels whose only sample lies at the border of a cell"
        assert np.abs(ours.rgba - free)[..., :3].mean() > 1e-3
        np.testing.assert_allclose(ours.rgba[..., 3], free[..., 3], atol=1e-3)


def test_a_still_head_gives_identical_frames(device: torch.device) -> None:
    model = painted_model(device)
    first, second = renderer(model), renderer(model)
    picture = first.render(STATE, VIEW).rgba
    assert picture.any()
    first.render(pose(open_head(), jaw=1.0), camera(20))
    np.testing.assert_array_equal(picture, first.render(STATE, VIEW).rgba)
    np.testing.assert_array_equal(picture, second.render(STATE, VIEW).rgba)


def test_a_head_out_of_view_gives_an_empty_frame(device: torch.device) -> None:
    native = renderer(painted_model(device))
    native.render(STATE, camera(32))
    assert not native.render(STATE, camera(32).cropped(5000.0, 0.0, 32, 32)).rgba.any()
    behind = replace(STATE, translation=np.array([0.0, 0.0, -0.6], np.float32))
    assert not native.render(behind, camera(32)).rgba.any()


@pytest.mark.parametrize("name", ["expression", "rotation", "translation", "jaw_pose"])
def test_a_nan_state_still_gives_a_finite_frame(device: torch.device, name: str) -> None:
    native = renderer(painted_model(device))
    broken = copy.deepcopy(STATE)
    getattr(broken, name)[:] = np.nan
    assert np.isfinite(native.render(broken, camera(32)).rgba).all()
    assert native.render(STATE, camera(32)).rgba.any()


@pytest.mark.parametrize(
    ("fused", "room"), [(True, 8), (False, 9)]
)  # in the chain the capacity is for steps, not for samples
def test_at_the_capacity_limit_no_holes_appear(device: torch.device, fused: bool, room: int) -> None:
    model = painted_model(device)
    full = renderer(model, fused=fused).render(STATE, VIEW).rgba
    skimped = renderer(model, fused=fused, capacity=VIEW.width * VIEW.height * room)
    short = skimped.frame(STATE, VIEW, "rgba").wait() / 255.0
    assert skimped.counters().steps_dropped > 1000
    solid = full[..., 3] > 0.995
    assert solid.sum() > 200
    assert np.quantile(short[solid, 3], 0.01) > 0.9
    assert (short[..., 3] <= full[..., 3] + 0.01).all()


def test_a_ray_with_too_many_samples_loses_only_the_farthest(device: torch.device) -> None:
    config = replace(SMALL, sampling=replace(SMALL.sampling, max_samples=6))
    model = copy.copy(painted_model(device, opaque=False))
    model.config = config
    native = renderer(model)
    assert psnr(native.render(STATE, VIEW).rgba, Renderer(model).render(STATE, VIEW).rgba) > ALIKE[device.type]
    native.frame(STATE, VIEW).wait()
    assert native.counters().rays_cut > 100
    assert native.counters().samples <= 6 * native.counters().rays


def over(rgba: Float32, background: Float32) -> Float32:
    return np.asarray(rgba[..., :3] + (1.0 - rgba[..., 3:]) * background, np.float32).clip(0.0, 1.0)


def test_frames_are_bytes_over_their_background(device: torch.device) -> None:
    native = renderer(painted_model(device))
    rgba = native.render(STATE, VIEW).rgba
    grey = np.full(3, 0.25, np.float32)
    room = np.random.default_rng().uniform(0.0, 1.0, (48, 48, 3)).astype(np.float32)
    for background in (None, grey, room, grey):
        behind = np.zeros(3, np.float32) if background is None else background
        picture = native.frame(STATE, VIEW, "rgb", background, frame_id=5)
        assert (picture.format, picture.frame_id, picture.t_capture_ns) == ("rgb", 5, STATE.t_capture_ns)
        assert np.abs(picture.wait() - 255.0 * over(rgba, behind)).max() <= 0.51
        assert picture.ready
    assert np.abs(native.frame(STATE, VIEW, "rgba").wait() - 255.0 * rgba).max() <= 0.51
    luma = over(rgba, room) @ np.array([65.481, 128.553, 24.966], np.float32) + 16.0
    shapes: dict[PixelFormat, tuple[int, int]] = {"i420": (72, 48), "nv12": (72, 48)}
    for kind, shape in shapes.items():
        planes = native.frame(STATE, VIEW, kind, room).wait()
        assert planes.shape == shape
        assert np.abs(planes[:48] - luma).max() <= 0.51
    both = [native.frame(STATE, VIEW, kind, room).wait()[48:].ravel() for kind in shapes]
    np.testing.assert_array_equal(both[0].reshape(2, -1), both[1].reshape(-1, 2).T)


def test_frames_of_the_ring_are_independent(device: torch.device) -> None:
    native = renderer(painted_model(device))
    states = [pose(open_head(), yaw=0.1 * i) for i in range(RING)]
    truth = [native.frame(state, VIEW, "rgba").wait().copy() for state in states]
    flying = [native.frame(state, VIEW, "rgba") for state in states]
    for picture, expected in zip(flying, truth, strict=True):
        np.testing.assert_array_equal(picture.wait(), expected)
    assert native.counters().pictures == 2 * RING


def test_impossible_formats_and_sizes_are_refused(device: torch.device) -> None:
    native = renderer(painted_model(device))
    with pytest.raises(ValueError, match="even"):
        native.frame(STATE, Camera(30.0, 30.0, 15.0, 15.0, 31, 30), "i420")
    with pytest.raises(ValueError, match="format"):
        native.frame(STATE, VIEW, "yuv9")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="broadcast"):
        native.frame(STATE, VIEW, "rgb", np.zeros((5, 5, 3), np.float32))


def test_render_uses_a_snapshot_at_once_and_frame_fades_to_it(device: torch.device) -> None:
    first, second = painted_model(device), painted_model(device, seed=1)
    now = [100.0]
    native, fresh = renderer(first, clock=lambda: now[0]), renderer(second)
    target = fresh.render(STATE, VIEW).rgba
    native.load(take_snapshot(second))
    np.testing.assert_array_equal(native.render(STATE, VIEW).rgba, target)
    native.load(take_snapshot(first))
    before = native.frame(STATE, VIEW, "rgba").wait().copy()
    native.load(take_snapshot(second))
    pictures = []
    for _ in range(5):  # five frames within the time of a fade
        assert native.fading
        now[0] += 0.201 * FADE_S
        pictures.append(native.frame(STATE, VIEW, "rgba").wait().copy().astype(float))
    end = fresh.frame(STATE, VIEW, "rgba").wait()
    assert not native.fading
    np.testing.assert_array_equal(pictures[-1], end)
    whole = np.abs(before - end.astype(float)).mean()
    assert 0.0 < np.abs(pictures[0] - before).mean() < 0.7 * whole
    np.testing.assert_array_equal(native.frame(STATE, VIEW, "rgba").wait(), end)


def test_poses_and_codes_fade_with_the_weights(device: torch.device) -> None:
    """With another pose refinement in the snapshot, the head moves gradually."""
    now = [0.0]
    model = painted_model(device)
    native = renderer(model, clock=lambda: now[0])
    before = native.frame(STATE, VIEW, "rgba").wait().astype(float)
    snapshot = take_snapshot(model)
    snapshot["pose_refinement"][0, 2:5] = torch.tensor([1.0, 1.0, 0.02])  # two centimetres aside, for every state
    native.load(snapshot)
    seen = [before]
    for _ in range(4):
        now[0] += 0.251 * FADE_S
        seen.append(native.frame(STATE, VIEW, "rgba").wait().astype(float))
    whole = np.abs(seen[-1] - before).mean()
    assert whole > 1.0
    for a, b in pairwise(seen):
        assert 0.0 < np.abs(b - a).mean() < 0.6 * whole


def test_a_snapshot_of_another_configuration_is_refused(device: torch.device) -> None:
    native = renderer(painted_model(device))
    before = native.render(STATE, VIEW).rgba
    for name in ("grid.table", "occupancy.value"):
        snapshot = take_snapshot(painted_model(device, seed=1))
        snapshot[name] = snapshot[name][1:]
        with pytest.raises(ValueError, match=r"table|fit"):
            native.load(snapshot)
        np.testing.assert_array_equal(native.render(STATE, VIEW).rgba, before)


def test_training_does_not_change_rendered_frames(device: torch.device) -> None:
    model = AvatarModel(open_head(), neutral_shape(open_head()), SMALL, device)
    native = renderer(model)
    before = native.render(STATE, VIEW).rgba
    trainer = TorchTrainer(model)
    head = open_head()
    colours = torch.full((len(head.template), 3), 0.5)
    for observation in photograph(head, performance(head, 3), 48, colours):
        trainer.add(observation)
    for _ in range(3):
        trainer.step()
    np.testing.assert_array_equal(native.render(STATE, VIEW).rgba, before)
    native.load(trainer.snapshot())
    assert np.abs(native.render(STATE, VIEW).rgba - before).max() > 1e-3


def states_of_a_turn(count: int) -> list[HeadState]:
    return [pose(open_head(), yaw=-0.3 + 0.6 * i / count) for i in range(count)]


def test_nothing_is_allocated_once_a_size_is_known(device: torch.device) -> None:
    native = renderer(painted_model(device))
    for _ in range(2 * RING):
        native.frame(STATE, VIEW)
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        for state in states_of_a_turn(12):
            native.frame(state, VIEW)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    kept = {name: t.data_ptr() for name, t in vars(native._canvas(VIEW)).items() if isinstance(t, torch.Tensor)}
    for state in states_of_a_turn(5):
        native.frame(state, VIEW)
    assert {n: t.data_ptr() for n, t in vars(native._canvas(VIEW)).items() if isinstance(t, torch.Tensor)} == kept


def test_the_coloured_mesh_is_composited_under_the_field(device: torch.device) -> None:
    model = copy.copy(painted_model(device, opaque=False))
    plain = renderer(model).render(STATE, VIEW).rgba
    model.underlay = torch.zeros_like(model.underlay)
    model.underlay[::2] = torch.tensor([0.1, 0.3, 0.6, 0.8], device=device)
    for fused in (True, False):
        ours, truth = renderer(model, fused=fused).render(STATE, VIEW).rgba, Renderer(model).render(STATE, VIEW).rgba
        assert psnr(ours, truth) > ALIKE[device.type]
    added = ours - plain
    assert (added > -1e-3).all()
    assert added[plain[..., 3] == 0.0].max() > 0.5
    assert (added[..., 3] < 0.8 * (1.0 - plain[..., 3]) + 1e-3).all(), (
        "the mesh is weighted by the transmittance of the field"
    )
    # It is part of a snapshot.
    late = renderer(painted_model(device, opaque=False))
    late.load(take_snapshot(model))
    np.testing.assert_array_equal(late.render(STATE, VIEW).rgba, renderer(model).render(STATE, VIEW).rgba)

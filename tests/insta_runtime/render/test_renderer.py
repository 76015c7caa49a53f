"""Torch renderer and coloured mesh."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.learn.torch_trainer import TorchTrainer
from insta_runtime.render.coloured_mesh import ColouredMesh
from insta_runtime.render.crossfade import FADE_S
from insta_runtime.render.renderer import Renderer, load_snapshot, take_snapshot
from insta_runtime.types import RenderedFrame
from tests.support.small_person import (
    camera,
    flame_head,
    neutral_shape,
    open_head,
    paint,
    performance,
    photograph,
    pose,
    small_model,
)

STATE, VIEW = pose(open_head(), jaw=0.4, yaw=0.2), camera(32)


def test_the_same_snapshot_gives_bit_identical_frames() -> None:
    model = small_model()
    first, second = Renderer(model), Renderer(small_model(seed=9))
    second.load(take_snapshot(model))
    picture = first.render(STATE, VIEW, 3)
    assert picture.rgba.shape == (32, 32, 4)
    assert picture.rgba.dtype == np.float32
    assert (picture.frame_id, picture.t_capture_ns) == (3, STATE.t_capture_ns)
    assert picture.rgba[16, 16, 3] > 0.05
    assert not picture.rgba[0, 0].any()
    assert (picture.rgba[..., :3] <= picture.rgba[..., 3:] + 1e-6).all(), "premultiplied"
    np.testing.assert_array_equal(picture.rgba, first.render(STATE, VIEW).rgba)
    np.testing.assert_array_equal(picture.rgba, second.render(STATE, VIEW).rgba)


def test_training_does_not_change_rendering_until_a_snapshot_is_loaded() -> None:
    head, model = open_head(), small_model()
    renderer = Renderer(model)
    before = renderer.render(STATE, VIEW).rgba
    trainer = TorchTrainer(model)
    for observation in photograph(head, performance(head, 3), 48, paint(head)):
        trainer.add(observation)
    for _ in range(6):
        trainer.step()
    assert not model.occupancy.occupied.all() or model.occupancy.view_count.any()
    np.testing.assert_array_equal(before, renderer.render(STATE, VIEW).rgba)
    snapshot = trainer.snapshot()
    renderer.load(snapshot)
    after = renderer.render(STATE, VIEW).rgba
    assert np.abs(after - before).max() > 0.01
    for _ in range(3):
        trainer.step()
    renderer.load(snapshot)
    np.testing.assert_array_equal(after, renderer.render(STATE, VIEW).rgba)


def test_a_snapshot_of_another_configuration_is_refused() -> None:
    model = small_model()
    snapshot = take_snapshot(model)
    snapshot["grid.table"] = snapshot["grid.table"][1:]
    with pytest.raises(ValueError, match="has the shape"):
        load_snapshot(model, snapshot)


def test_a_head_outside_the_view_gives_an_empty_frame() -> None:
    aside = VIEW.cropped(5000.0, 0.0, 32, 32)
    assert not Renderer(small_model()).render(STATE, aside).rgba.any()


@pytest.mark.parametrize("head", [open_head(), flame_head()], ids=["open", "flame"])
def test_the_coloured_mesh_has_the_colours_of_the_frames(head: HeadModel) -> None:
    rig = HeadRig(head)
    colour = torch.tensor([0.8, 0.4, 0.2])
    mesh = ColouredMesh(rig, neutral_shape(head))
    for observation in photograph(head, performance(head, 3), 96, colour.expand(len(head.template), 3)):
        mesh.observe(observation)
    rgba = mesh.render(pose(head, yaw=-0.2), camera(64)).rgba
    inside = torch.nn.functional.max_pool2d(-torch.tensor(rgba[..., 3])[None], 5, 1, 2)[0] < -0.99
    assert inside.sum() > 150
    error = np.abs(rgba[..., :3] - colour.numpy())[inside.numpy()]
    assert np.quantile(error, 0.95) < 0.02
    assert not rgba[0, 0].any()


def test_unseen_parts_of_the_coloured_mesh_have_their_neighbours_colours() -> None:
    head = open_head()
    mesh = ColouredMesh(HeadRig(head), neutral_shape(head))
    mesh.observe(photograph(head, [pose(head)], 96, torch.full((len(head.template), 3), 0.5))[0])
    turned = mesh.render(pose(head, yaw=0.6), camera(64)).rgba
    seen = turned[turned[..., 3] > 0]
    # At the silhouette the matte is mixed with the background, and what lies behind takes over from there.
    assert np.quantile(seen[:, 3], 0.05) > 0.4
    assert np.median(seen[:, 3]) > 0.99
    np.testing.assert_allclose(seen[:, :3] / seen[:, 3:], 0.5, atol=0.02)


def test_over_composites_premultiplied_colour() -> None:
    rgba = np.zeros((2, 2, 4), np.float32)
    rgba[0, 0] = [0.5, 0.0, 0.25, 0.5]
    rgba[0, 1] = [1.0, 1.0, 1.0, 1.0]
    frame = RenderedFrame(0, 0, rgba)
    over_red = frame.over(np.array([1.0, 0.0, 0.0], np.float32))
    assert over_red.dtype == np.uint8
    assert over_red.tolist() == [[[255, 0, 64], [255, 255, 255]], [[255, 0, 0], [255, 0, 0]]]
    room = np.zeros((2, 2, 3), np.float32)
    room[1, 1] = [0.0, 0.0, 2.0]
    assert frame.over(room)[1].tolist() == [[0, 0, 0], [0, 0, 255]]


def test_picture_crossfades_to_a_snapshot_and_render_shows_it_at_once() -> None:
    now, model = [0.0], small_model()
    renderer, state, view = Renderer(model, lambda: now[0]), STATE, camera(24)
    white = np.ones(3, np.float32)
    first = renderer.picture(state, view, white).astype(float)
    snapshot = take_snapshot(model)
    snapshot["colour_net.4.bias"] += 2.0
    renderer.load(snapshot)
    seen = [first]
    for _ in range(4):
        assert renderer.fading
        now[0] += 0.251 * FADE_S
        seen.append(renderer.picture(state, view, white).astype(float))
    assert not renderer.fading
    whole = np.abs(seen[-1] - first).mean()
    assert whole > 1.0
    assert all(0.0 < np.abs(b - a).mean() < 0.6 * whole for a, b in pairwise(seen))
    fresh = Renderer(model)
    fresh.load(snapshot)
    np.testing.assert_array_equal(seen[-1], fresh.picture(state, view, white))
    renderer.load(take_snapshot(model))
    np.testing.assert_array_equal(renderer.render(state, view).rgba, Renderer(model).render(state, view).rgba)

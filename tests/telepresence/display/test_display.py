"""Output frames while a face is gone, cards, and resized images."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from insta_runtime.geometry import rotation_matrix
from insta_runtime.types import HeadState
from telepresence.display.backgrounds import Backgrounds
from telepresence.display.display import HOLD_S, RELAX_S, Display, Scene, relaxed, resized

WAITING = Scene(None, None, None, False, 0.0, None, "Waiting for a face", "Sit down.")


def pose(rotation: list[float]) -> HeadState:
    rng = np.random.default_rng(1)
    return HeadState(
        rng.random(52, dtype=np.float32),
        jaw_pose=np.array([0.3, 0.0, 0.0], np.float32),
        rotation=np.array(rotation, np.float32),
        translation=np.array([0.1, 0.0, 0.7], np.float32),
    )


def test_a_face_that_left_holds_still_then_becomes_neutral_where_it_was() -> None:
    state = pose([3.0, 0.2, 0.1])
    assert relaxed(state, HOLD_S) is state
    end = relaxed(state, HOLD_S + RELAX_S + 1.0)
    assert not end.expression.any()
    assert not end.jaw_pose.any()
    np.testing.assert_allclose(rotation_matrix(end.rotation), np.diag([1.0, -1.0, -1.0]), atol=1e-6)
    np.testing.assert_array_equal(end.translation, state.translation)


def test_a_lost_face_is_held_then_relaxes() -> None:
    state = replace(pose([np.pi, 0.0, 0.0]), expression=np.full(52, 0.8, np.float32))
    assert relaxed(state, 0.5 * HOLD_S).expression == pytest.approx(state.expression)
    half = relaxed(state, HOLD_S + 0.5 * RELAX_S).expression
    assert (half > 0.1).all()
    assert (half < 0.7).all()
    assert np.abs(relaxed(state, 5.0).expression).max() == 0.0
    assert np.array_equal(relaxed(state, 5.0).translation, state.translation)


angles = st.floats(-0.6, 0.6)


@given(angles, angles, angles, st.booleans())
def test_easing_never_jumps_whatever_side_of_pi_the_rotation_is_on(a: float, b: float, c: float, flip: bool) -> None:
    rotation = np.array([np.pi - abs(a), b, c])
    if flip:
        rotation *= 1.0 - 2.0 * np.pi / np.linalg.norm(rotation)
    state = pose(rotation.tolist())
    steps = [relaxed(state, HOLD_S + t * RELAX_S) for t in np.linspace(0.0, 1.0, 31)]
    turns = [rotation_matrix(step.rotation) for step in steps]
    for before, after in itertools.pairwise(turns):
        angle = np.arccos(np.clip((np.trace(before.T @ after) - 1.0) / 2.0, -1.0, 1.0))
        assert angle < 0.1


def test_a_card_is_rendered_once_and_again_when_its_text_changes() -> None:
    display = Display(128, 50.0, Backgrounds("calm"))
    first = display.render(WAITING)
    assert first is not None
    assert first.rgb.shape == (128, 128, 3)
    assert not first.is_avatar
    assert display.render(WAITING) is None
    other = display.render(Scene(None, None, None, False, 0.0, None, "No camera picture", "Plug it in."))
    assert other is not None
    assert other.frame_id == first.frame_id + 1
    assert (other.rgb != first.rgb).any()


def test_the_camera_is_displayed_only_if_viewers_may_see_it() -> None:
    raw = np.full((64, 64, 3), 200, np.uint8)
    shown = Display(128, 50.0, Backgrounds("calm")).render(Scene(None, None, None, False, 0.0, raw, "", ""))
    assert shown is not None
    assert (shown.rgb == 200).all()


def test_resized() -> None:
    picture = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
    assert resized(picture, 32) is picture
    assert resized(picture, 96).shape == (96, 96, 3)


def test_the_coloured_mesh_is_rendered_before_there_is_an_avatar() -> None:
    from insta_runtime.head import HeadRig, load_head
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from insta_runtime.types import Observation
    from telepresence.sources.synthetic import actor_clip

    head = load_head()
    frame = next(actor_clip(1, size=128))
    truth = frame.truth
    assert truth is not None
    mesh = ColouredMesh(HeadRig(head, torch.device("cpu")), np.zeros(len(head.shape_dirs), np.float32))
    mesh.observe(Observation(0, frame.rgb, truth.alpha, truth.camera, truth.state))
    display = Display(128, 50.0, Backgrounds("#000000"))
    scene = Scene(truth.state, truth.camera, None, False, 0.0, None, "", "", mesh)
    shown = display.render(scene)
    assert shown is not None
    assert shown.render_inputs is not None
    assert (shown.is_avatar, shown.render_inputs.weights) == (False, 0)
    face = truth.alpha > 250
    assert np.abs(shown.rgb[face].astype(float) - frame.rgb[face]).mean() < 40
    assert display.render(scene) is None, "nothing has changed"

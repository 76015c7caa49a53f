"""Similarity transforms, the slow pose, and prediction of the torso's motion inside and outside the training range."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from insta_runtime.torso.motion import INPUTS, POSE, SLOW_S, MotionFit, Similarity, SlowPose, picture_pose, seated
from insta_runtime.types import Camera, HeadState

CAMERA = Camera(600.0, 600.0, 256.0, 256.0, 512, 512)
small = st.floats(-0.3, 0.3)
motions = st.builds(Similarity, small, small, small, small)


@given(motions, motions)
def test_similarities_form_a_group(one: Similarity, other: Similarity) -> None:
    point = np.array([0.3, -0.4, 1.0])
    inner = np.append(other.matrix() @ point, 1.0)
    np.testing.assert_allclose(one.after(other).matrix() @ point, one.matrix() @ inner, atol=1e-9)
    np.testing.assert_allclose(one.after(one.inverse()).vector(), np.zeros(4), atol=1e-9)


def test_the_pose_in_the_image_agrees_with_the_camera() -> None:
    state = replace(HeadState.neutral(52), translation=np.array([0.05, -0.1, 0.5], np.float32))
    x, y, size, *turn = picture_pose(state, CAMERA)
    assert math.isclose((x + 1.0) * 256.0, 600.0 * 0.05 / 0.5 + 256.0, rel_tol=1e-6)
    assert math.isclose((y + 1.0) * 256.0, 600.0 * -0.1 / 0.5 + 256.0, rel_tol=1e-6)
    assert math.isclose(math.exp(size) * 256.0, 600.0 / 0.5, rel_tol=1e-6)
    np.testing.assert_allclose(turn, 0.0, atol=1e-6)
    np.testing.assert_allclose(picture_pose(state, CAMERA.scaled(128, 128)), [x, y, size, *turn])


def test_a_head_is_placed_at_a_pose_in_the_image() -> None:
    state = replace(HeadState.neutral(52), translation=np.array([0.3, 0.2, 1.5], np.float32))
    pose = np.array([0.1, -0.2, 1.3, 0.0, 0.0, 0.0])
    there = seated(pose, state, CAMERA)
    np.testing.assert_allclose(picture_pose(there, CAMERA), pose, atol=1e-6)
    np.testing.assert_array_equal(there.rotation, state.rotation)


def test_the_slow_pose_follows_within_seconds_and_restarts_when_time_goes_back() -> None:
    slow, still, moved = SlowPose(), np.zeros(POSE), np.ones(POSE)
    slow.inputs(still, 0)
    for number in range(1, 101):
        inputs = slow.inputs(moved, number * round(1e7 * SLOW_S))
    np.testing.assert_allclose(inputs[:POSE], 1.0 - math.exp(-1.0), rtol=1e-6)
    np.testing.assert_allclose(inputs[:POSE] + inputs[POSE:], 1.0)
    np.testing.assert_array_equal(slow.inputs(moved, 5), np.concatenate([moved, still]))


def learned(count: int = 150) -> tuple[MotionFit, np.ndarray]:
    """Shoulders that take half of the slow way in x and a tenth of the present one, with some noise."""
    random = np.random.default_rng(0)
    fit = MotionFit()
    inputs = np.zeros((count, INPUTS))
    inputs[:, :3] = 0.1 * np.cumsum(random.normal(size=(count, 3)), 0) / math.sqrt(count)
    inputs[:, POSE : POSE + 3] = 0.02 * random.normal(size=(count, 3))
    for row in inputs:
        noise = 0.001 * random.normal(size=4)
        fit.add(row, Similarity.from_vector(noise + np.array([0.5 * row[0] + 0.1 * row[POSE], 0.0, 0.0, 0.0])))
    return fit, inputs


def test_motion_is_predicted_from_correlated_inputs() -> None:
    fit, inputs = learned()
    model = fit.solve()
    wrong = [model.predict(row).x - (0.5 * row[0] + 0.1 * row[POSE]) for row in inputs]
    assert float(np.std(wrong)) < 0.002
    assert max(abs(model.predict(row).y) for row in inputs) < 0.005


def test_shoulders_that_do_not_follow_the_head_are_predicted_still() -> None:
    random = np.random.default_rng(1)
    fit = MotionFit()
    rows = 0.05 * random.normal(size=(60, INPUTS))
    for row in rows:
        fit.add(row, Similarity.from_vector(0.01 * random.normal(size=4)))
    moves = np.array([fit.solve().predict(row).vector() for row in rows])
    assert moves.std() < 0.006  # noise is not taken for a law


def test_outside_the_training_range_the_torso_follows_the_head() -> None:
    model = learned()[0].solve()
    known = model.middle
    far = known.copy()
    far[0] += 1.0
    far[2] += math.log(2.0)
    there, here = model.predict(far), model.predict(known)
    # The head's joint stays over the same spot of the torso, as far as the torso was seen to move.
    head, away = np.array([known[0], known[1], 1.0]), np.array([far[0], far[1]])
    spot = np.append(here.inverse().matrix() @ head, 1.0)
    assert np.abs(there.matrix() @ spot - away).max() < 2.0 * 2.5 * 0.1
    assert math.log(2.0) - 2.5 * 0.1 < there.scale < math.log(2.0)
    beyond = known.copy()
    beyond[3:POSE] += 3.0  # turned farther than a head can turn
    assert np.abs(model.predict(beyond).vector() - here.vector()).max() < 0.1

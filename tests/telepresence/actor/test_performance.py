"""Performance of the synthetic actor: bounded, smooth, periodic and deterministic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insta_runtime.geometry import axis_angle
from insta_runtime.head import load_head
from insta_runtime.head.rig import rotation_matrix
from telepresence.actor.performance import DISTANCE, PERIOD, Performance

NAMES = load_head().expression_names
MOMENTS = np.arange(0.0, PERIOD, 0.05)


@pytest.fixture(scope="module")
def states():
    performance = Performance(NAMES, seed=0)
    return [performance(t) for t in MOMENTS]


def unit(states, name):
    return np.array([s.expression[NAMES.index(name)] for s in states])


def test_equal_seeds_give_equal_performances_and_others_do_not():
    first, again, other = Performance(NAMES, 1), Performance(NAMES, 1), Performance(NAMES, 2)
    for name, value in first(7.3).arrays().items():
        np.testing.assert_array_equal(value, again(7.3).arrays()[name])
    assert not np.array_equal(first(7.3).rotation, other(7.3).rotation)


def test_the_performance_repeats_smoothly():
    performance = Performance(NAMES)
    for t in (0.0, 1.7, 13.25):
        for name, value in performance(t).arrays().items():
            np.testing.assert_allclose(value, performance(t + PERIOD).arrays()[name], atol=1e-5)
    before, after = performance(PERIOD - 1e-4), performance(PERIOD + 1e-4)
    np.testing.assert_allclose(before.expression, after.expression, atol=5e-3)
    np.testing.assert_allclose(before.rotation, after.rotation, atol=1e-3)


def test_every_state_is_possible(states):
    expression = np.array([s.expression for s in states])
    assert expression.dtype == np.float32
    assert expression.min() >= 0.0
    assert expression.max() <= 1.0
    turns = rotation_matrix(torch.from_numpy(np.array([s.rotation for s in states]))).numpy()
    nose = turns[:, :, 2]  # where the face points, camera space
    yaw = np.degrees(np.arctan2(nose[:, 0], -nose[:, 2]))
    pitch = np.degrees(np.arcsin(nose[:, 1]))
    assert 15 < yaw.max() < 28
    assert -28 < yaw.min() < -15
    assert np.abs(pitch).max() < 15
    assert np.abs(np.array([s.translation for s in states])[:, 2] - DISTANCE).max() < 0.06


def test_motion_is_smooth(states):
    rotation = np.array([s.rotation for s in states])
    assert np.abs(np.diff(rotation, axis=0)).max() < np.radians(5.0)
    assert np.abs(np.diff(unit(states, "jawOpen"))).max() < 0.55


def test_the_performance_speaks_blinks_smiles_and_glances(states):
    jaw = unit(states, "jawOpen")
    assert ((jaw[1:-1] > jaw[:-2]) & (jaw[1:-1] > jaw[2:]) & (jaw[1:-1] > 0.1)).sum() > 20
    shut = unit(states, "eyeBlinkLeft") > 0.9
    blinks = MOMENTS[1:][shut[1:] & ~shut[:-1]]
    assert 4 <= len(blinks) <= 12
    gaps = np.diff(np.append(blinks, blinks[0] + PERIOD))
    assert gaps.min() > 1.8
    assert gaps.max() < 5.3
    assert unit(states, "mouthSmileLeft").max() > 0.6
    assert np.ptp([s.eye_pose[0, 1] for s in states]) > 0.3
    np.testing.assert_array_equal([s.eye_pose[0] for s in states], [s.eye_pose[1] for s in states])


def test_axis_angle_inverts_rotation_matrices():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(200, 3))
    vectors *= (random.uniform(0.0, np.pi, 200) / np.linalg.norm(vectors, axis=1))[:, None]
    special = [[0, 0, 0], [np.pi, 0, 0], [0, np.pi, 0], [1e-9, 0, 0], [np.pi - 1e-6, 0, 0]]
    for vector in np.concatenate([vectors, special]):
        matrix = rotation_matrix(torch.tensor(vector)).numpy()
        back = rotation_matrix(torch.tensor(axis_angle(matrix))).numpy()
        np.testing.assert_allclose(back, matrix, atol=1e-6)

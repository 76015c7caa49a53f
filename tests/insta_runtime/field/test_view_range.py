"""View range: views inside it are unchanged, others are clamped to its border."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.config import ConditioningConfig
from insta_runtime.field.expression_code import PULLED_FROM, ExpressionCode
from insta_runtime.field.view_range import SLACK, ViewRange, view_angles
from insta_runtime.geometry import rotation_matrix
from insta_runtime.types import Float64, HeadState
from tests.support.small_person import open_head, pose


def eye(state: HeadState) -> Float64:
    """Direction (3,) of the camera in head space."""
    place = -rotation_matrix(state.rotation).T @ state.translation
    return np.asarray(place / np.linalg.norm(place))


def learned(config: ConditioningConfig | None = None, count: int = PULLED_FROM) -> ExpressionCode:
    code = ExpressionCode(open_head(), config)
    for yaw in np.linspace(-0.2, 0.2, count):
        code.observe(pose(open_head(), yaw=float(yaw)))
    return code


def test_angles_are_those_of_the_camera_around_the_head() -> None:
    still = pose(open_head())
    ahead = replace(still, translation=np.array([0.0, 0.0, 0.6], np.float32))
    np.testing.assert_allclose(view_angles(ahead), 0.0, atol=1e-6)
    low = replace(still, translation=np.array([0.0, 0.6, 0.6], np.float32))  # y is down: the camera is above the head
    np.testing.assert_allclose(view_angles(low), [0.0, np.pi / 4], atol=1e-6)
    turns = [view_angles(pose(open_head(), yaw=yaw))[0] for yaw in (0.0, 0.3)]
    assert abs(turns[1] - turns[0]) == pytest.approx(0.3, abs=1e-3)


def test_views_seen_in_training_are_unchanged() -> None:
    code = learned()
    for yaw in (-0.2, -0.05, 0.2):
        np.testing.assert_array_equal(code.turn(pose(open_head(), yaw=yaw)), np.eye(3))


@pytest.mark.parametrize("yaw", [0.5, -0.9, 2.5])
def test_another_view_is_clamped_to_the_nearest_one(yaw: float) -> None:
    code, state = learned(), pose(open_head(), yaw=yaw)
    turn = code.turn(state)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-5)
    x, y, z = turn @ eye(state)
    angles = np.array([np.arctan2(x, z), np.arcsin(y)])
    np.testing.assert_allclose(angles, view_angles(state).clip(code.views.low, code.views.high), atol=1e-4)
    assert abs(angles[0]) < 0.2 + SLACK + 0.05


def test_views_are_unchanged_before_enough_frames_and_with_the_setting_off() -> None:
    far = pose(open_head(), yaw=1.0)
    np.testing.assert_array_equal(learned(count=PULLED_FROM - 1).turn(far), np.eye(3))
    np.testing.assert_array_equal(learned(ConditioningConfig(pull_views=False)).turn(far), np.eye(3))
    np.testing.assert_array_equal(ViewRange.unbounded().turn(far), np.eye(3))

"""Guidance: which directions and expressions were seen, and the next prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.head import load_head
from insta_runtime.types import HeadState
from telepresence.learning.guidance import DIRECTIONS, ENOUGH, PROMPTS, SPEECH, Guidance, direction

NAMES = tuple(load_head().expression_names)


def turned(left: float, up: float) -> HeadState:
    """Neutral head state turned by ``left`` and ``up`` degrees, from the subject's point of view."""
    yaw = rotation_matrix(np.radians([0.0, left, 0.0]))
    pitch = rotation_matrix(np.radians([-up, 0.0, 0.0]))
    facing = np.diag([1.0, -1.0, -1.0])
    return replace(HeadState.neutral(len(NAMES)), rotation=axis_angle(facing @ yaw @ pitch).astype(np.float32))


def with_units(**units: float) -> HeadState:
    expression = np.zeros(len(NAMES), dtype=np.float32)
    for name, value in units.items():
        expression[NAMES.index(name)] = value
    return HeadState(expression)


def seen(guidance: Guidance, *states: HeadState) -> Guidance:
    for state in states:
        guidance = guidance.after(state)
    return guidance


@pytest.mark.parametrize(("left", "up"), [(0, 0), (20, 0), (-30, 0), (0, 15), (10, -12)])
def test_directions_are_from_the_subjects_point_of_view(left: float, up: float) -> None:
    found = np.degrees(direction(turned(left, up).rotation))
    np.testing.assert_allclose(found, (left, up), atol=1.0)


@pytest.mark.parametrize(
    ("left", "up", "name"),
    [
        (20, 0, "left"),
        (-20, 0, "right"),
        (0, 15, "up"),
        (0, -15, "down"),
        (20, 14, "up left"),
        (-20, -14, "down right"),
    ],
)
def test_each_direction_fills_its_sector_of_the_ring(left: float, up: float, name: str) -> None:
    guidance = seen(Guidance.of(NAMES), *[turned(left, up)] * ENOUGH)
    assert [part for part, full in zip(DIRECTIONS, guidance.directions, strict=True) if full] == [name]
    assert all(guidance.expressions[word] for word in name.split())
    assert not guidance.expressions["ahead"]


def test_expressions_are_recognised() -> None:
    guidance = Guidance.of(NAMES)
    for states, key in (
        ([with_units(jawOpen=0.6)], "open"),
        ([with_units(mouthSmileLeft=0.6, mouthSmileRight=0.6)], "smile"),
        ([with_units(browInnerUp=0.6)], "brows"),
        ([with_units(jawOpen=0.25 * (i % 2)) for i in range(2 * SPEECH)], "talk"),
    ):
        assert not guidance.expressions[key]
        guidance = seen(guidance, *states * ENOUGH)
        assert guidance.expressions[key]


def test_one_hint_at_a_time_until_all_prompts_are_done() -> None:
    guidance = Guidance.of(NAMES)
    hints = [guidance.hint]
    everything = {
        "ahead": [turned(0, 0)],
        "left": [turned(20, 0)],
        "right": [turned(-20, 0)],
        "up": [turned(0, 15)],
        "down": [turned(0, -15)],
        "talk": [with_units(jawOpen=0.25 * (i % 2)) for i in range(2 * SPEECH)],
        "smile": [with_units(mouthSmileLeft=0.6, mouthSmileRight=0.6)],
        "open": [with_units(jawOpen=0.6)],
        "brows": [with_units(browInnerUp=0.6)],
    }
    for wish in PROMPTS:
        guidance = seen(guidance, *everything[wish.key] * ENOUGH)
        hints.append(guidance.hint)
    assert hints == [*(wish.hint for wish in PROMPTS), None]


def test_a_head_model_without_arkit_units_gets_no_prompts_for_them() -> None:
    guidance = Guidance.of([f"component {i}" for i in range(100)])
    assert "smile" not in guidance.expressions
    state = HeadState(np.zeros(100, dtype=np.float32), jaw_pose=np.array([0.2, 0.0, 0.0], dtype=np.float32))
    assert seen(guidance, *[state] * ENOUGH).expressions["open"]

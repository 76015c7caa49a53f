"""The expression code of both kinds of heads, and how masks fade it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from insta_runtime.config import ConditioningConfig
from insta_runtime.field.expression_code import (
    CODE_WIDTH,
    EYE_WIDTH,
    HEAD_UNITS,
    MOUTH_WIDTH,
    REGION_WIDTH,
    ExpressionCode,
    condition,
)
from insta_runtime.field.lip_code import LIPS_UNITS
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Float32, HeadState
from tests.support.small_person import flame_head, open_head


def open_head_code(**changes: object) -> Float32:
    return ExpressionCode(open_head())(replace(HeadState.neutral(52), **changes))


def unit(*names: str) -> Float32:
    expression = np.zeros(52, np.float32)
    expression[[open_head().expression_names.index(name) for name in names]] = 1.0
    return expression


@pytest.mark.parametrize("head", [open_head, flame_head])
def test_a_neutral_face_has_the_zero_code(head) -> None:
    code = ExpressionCode(head())(HeadState.neutral(len(head().expression_names)))
    assert code.shape == (CODE_WIDTH,)
    assert code.dtype == np.float32
    np.testing.assert_allclose(code, 0.0, atol=1e-6)


def test_mouth_units_fill_the_mouth_part_of_the_code() -> None:
    for row, names in enumerate(LIPS_UNITS):
        code = open_head_code(expression=unit(*names))
        expected = np.zeros(REGION_WIDTH)
        expected[row] = 1.0
        np.testing.assert_allclose(code[:REGION_WIDTH], expected, atol=1e-6)


def test_a_lid_closes_by_its_unit_or_by_itself() -> None:
    by_unit = open_head_code(expression=unit("eyeBlinkRight"))
    by_lid = open_head_code(eyelids=np.array([0.0, 1.0], np.float32))
    np.testing.assert_allclose(by_unit[:REGION_WIDTH], by_lid[:REGION_WIDTH])
    assert np.flatnonzero(by_unit[:REGION_WIDTH]).tolist() == [MOUTH_WIDTH + 1]


def test_head_units_fill_the_head_part_of_the_code() -> None:
    for row, names in enumerate(HEAD_UNITS):
        expected = np.zeros(len(HEAD_UNITS))
        expected[row] = 1.0
        code = open_head_code(expression=unit(*names))
        np.testing.assert_allclose(code[REGION_WIDTH : REGION_WIDTH + len(HEAD_UNITS)], expected, atol=1e-6)


def test_the_code_ends_with_the_direction_of_the_view_and_other_positions_do_not_change_it() -> None:
    neutral = HeadState.neutral(52)
    turned = rotation_matrix(neutral.rotation) @ rotation_matrix(np.array([0.0, -0.2, 0.0]))
    code = open_head_code(rotation=axis_angle(turned).astype(np.float32))
    np.testing.assert_allclose(code[-2:], [0.4, 0.0], atol=1e-5)
    assert not code[:-2].any()
    farther = open_head_code(translation=2.0 * neutral.translation)
    np.testing.assert_allclose(farther, open_head_code(), atol=1e-6)


def test_without_a_head_part_its_numbers_are_zero() -> None:
    code = ExpressionCode(open_head(), ConditioningConfig(head_part=False))
    raw = code.raw(replace(HeadState.neutral(52), expression=unit("browInnerUp", "jawOpen")))
    assert np.flatnonzero(raw).tolist() == [0]


def test_head_pose_is_not_part_of_mouth_and_eyes_but_gaze_is() -> None:
    moved = open_head_code(rotation=np.array([3.0, 0.4, 0], np.float32), translation=np.array([0.1, 0, 1], np.float32))
    assert not moved[:REGION_WIDTH].any()
    gaze = open_head_code(eye_pose=np.array([[0.1, 0.2, 0], [0.1, 0.4, 0]], np.float32))
    np.testing.assert_allclose(gaze[REGION_WIDTH - 2 : REGION_WIDTH], [0.2, 0.6], atol=1e-6)
    assert not gaze[: REGION_WIDTH - 2].any()


def test_the_code_of_flame_holds_jaw_lids_and_first_components() -> None:
    whole = ExpressionCode(flame_head())

    def encode(state: HeadState) -> Float32:
        return whole(state)[:REGION_WIDTH]

    neutral = HeadState.neutral(100)
    jaw = encode(replace(neutral, jaw_pose=np.array([0.25, 0, 0], np.float32)))
    assert np.flatnonzero(jaw).tolist() == [13]
    assert jaw[13] == pytest.approx(1.0)
    lids = encode(replace(neutral, eyelids=np.ones(2, np.float32)))
    assert np.flatnonzero(lids).tolist() == [MOUTH_WIDTH, MOUTH_WIDTH + 1]
    components = encode(replace(neutral, expression=np.full(100, 2.0, np.float32)))
    assert np.flatnonzero(components).tolist() == [*range(13), MOUTH_WIDTH + 2, MOUTH_WIDTH + 3]
    head_part = whole.raw(replace(neutral, expression=np.arange(100, dtype=np.float32)))[REGION_WIDTH:]
    np.testing.assert_allclose(head_part[: len(HEAD_UNITS)], np.arange(len(HEAD_UNITS)) / 2.0)


def test_masks_fade_each_part_of_the_code_to_zero() -> None:
    codes = torch.ones((4, CODE_WIDTH))
    masks = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.25]])
    faded = condition(codes, masks)
    assert torch.equal(faded[:, :MOUTH_WIDTH], masks[:, :1].expand(4, MOUTH_WIDTH))
    assert torch.equal(faded[:, MOUTH_WIDTH:REGION_WIDTH], masks[:, 1:].expand(4, EYE_WIDTH))
    assert bool((faded[:, REGION_WIDTH:] == 1.0).all()), "the head part is the same everywhere"

"""Kernel for posed vertices against `HeadRig`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.geometry import rotation_matrix
from insta_runtime.native.posing import pack_state
from insta_runtime.types import HeadState
from insta_runtime.warp.warp import MOTION, PARTS
from tests.support.posed_person import model_of, random_state, run
from tests.support.small_person import camera

VERTICES = {"rtol": 0.0, "atol": 2e-6}  # metres: sums of up to 150 float32 terms on a head of 0.3 m


@pytest.mark.parametrize("flame", [False, True], ids=["open head", "flame"])
@pytest.mark.parametrize("seed", [0, 1])
def test_vertices_are_those_of_the_rig(device: torch.device, flame: bool, seed: int) -> None:
    """Expression, lids, every joint, and (FLAME) pose correctives; two frames at once."""
    model = model_of(device, flame=flame)
    states = [random_state(model.head, 10 * seed + i) for i in range(2)]
    posed = run(model, states)
    for frame, twin in enumerate(posed.twins()):
        torch.testing.assert_close(posed.array("vertices")[frame], twin.vertices, **VERTICES)


def test_zero_rotations(device: torch.device) -> None:
    """Rodrigues' formula at angle zero."""
    model = model_of(device, flame=True)
    posed = run(model, [HeadState.neutral(len(model.head.expression_names))])
    torch.testing.assert_close(posed.array("vertices")[0], posed.twins()[0].vertices, **VERTICES)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_nan_and_infinity_count_as_zero(device: torch.device, bad: float) -> None:
    """In the packed row and in the head state, so that one bad number cannot spoil a frame."""
    model = model_of(device)
    good = random_state(model.head, 3)
    expression, jaw = good.expression.copy(), good.jaw_pose.copy()
    expression[5] = jaw[1] = 0.0
    mended = replace(good, expression=expression, jaw_pose=jaw)
    expression, jaw = expression.copy(), jaw.copy()
    expression[5] = jaw[1] = bad
    spoilt = replace(good, expression=expression, jaw_pose=jaw)
    view = camera(64)
    np.testing.assert_array_equal(pack_state(model, spoilt, view), pack_state(model, mended, view))

    posed = run(model, [mended])
    units = len(model.head.expression_names)
    posed.heads.states[0, 5] = bad
    posed.heads.states[0, units + 2 + 3 + 1] = bad
    posed.heads.kernels.launch("pose_vertices", posed.heads.head, posed.heads.poses, items=32 * 1000)
    torch.testing.assert_close(posed.array("vertices")[0], posed.twins()[0].vertices, **VERTICES)


def test_a_packed_row_has_the_layout_of_layout_cuh(device: torch.device) -> None:
    model = model_of(device)
    state, view = random_state(model.head, 4), camera(48)
    apart = np.arange(PARTS * MOTION, dtype=np.float32).reshape(PARTS, MOTION)
    row, units = pack_state(model, state, view, apart), len(model.head.expression_names)
    parts = np.split(row, np.cumsum([units, 2, 3, 3, 6, 9, 3, 4, PARTS * MOTION, 9]))
    wanted = [
        state.expression,
        state.eyelids,
        state.neck_pose,
        state.jaw_pose,
        state.eye_pose.ravel(),
        rotation_matrix(state.rotation).ravel(),
        state.translation,
        [view.fx, view.fy, view.cx, view.cy],
        apart.ravel(),
        np.eye(3).ravel(),  # the identity before any view was seen
        model.code(state),
    ]
    assert len(parts[-1]) == CODE_WIDTH
    for part, values in zip(parts, wanted, strict=True):
        np.testing.assert_allclose(part, np.asarray(values, np.float32), atol=1e-7)

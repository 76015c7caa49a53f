"""Calibration on subjects with known landmarks, and its JSON representation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from insta_runtime.errors import UserError
from telepresence.tracking.calibration import Calibration, calibrate, keyframes
from telepresence.tracking.head_fit import HeadFitter
from telepresence.tracking.landmark_basis import landmark_basis

SIZE = 512


@pytest.fixture(scope="module")
def faces(open_subject):
    rng = np.random.default_rng(21)
    return [open_subject.face(open_subject.pose(rng), rng, noise=0.5) for _ in range(25)]


@pytest.fixture(scope="module")
def calibration(open_head, faces):
    return calibrate(open_head, faces, SIZE, SIZE)


def test_the_calibrated_head_fits_better_than_the_mean_head(open_head, faces, calibration):
    mean = HeadFitter(landmark_basis(open_head), calibration.camera)
    person = calibration.fitter(open_head)
    before = np.mean([mean.fit(face, None).error for face in faces])
    after = np.mean([person.fit(face, None).error for face in faces])
    assert after < 0.9 * before  # noise of 0.5 px alone gives 0.63
    assert after < 0.7
    assert calibration.error == pytest.approx(after, abs=0.3)


def test_identity_stays_plausible(calibration):
    assert np.abs(calibration.shape).max() < 2.0
    assert np.linalg.norm(calibration.offsets, axis=1).mean() < 0.003


def test_the_focal_length_is_the_given_one_or_the_default(open_head, faces, calibration):
    assert calibration.focal == pytest.approx(1.2 * SIZE)
    assert calibrate(open_head, faces[:3], SIZE, SIZE, focal=900.0).focal == 900.0


def test_a_known_subject_keeps_the_identity_before_another_camera(open_head, faces, calibration):
    again = calibrate(open_head, faces, SIZE, SIZE, focal=700.0, known=calibration.shape)
    np.testing.assert_array_equal(again.shape, calibration.shape)
    assert again.focal == 700.0
    assert again.error < 1.5 * calibration.error


def test_one_frame_is_enough_to_start(open_head, faces):
    calibration = calibrate(open_head, faces[:1], SIZE, SIZE)
    assert calibration.fitter(open_head).fit(faces[0], None).error < 1.0


def test_keyframes_are_the_most_different_frames(open_subject):
    rng = np.random.default_rng(0)
    still = open_subject.pose(rng, turn=0.02)
    turned = open_subject.pose(rng, turn=0.6)
    faces = [open_subject.face(still, rng, 0.1) for _ in range(30)]
    faces[17] = open_subject.face(turned, rng, 0.1)
    chosen = keyframes(faces, open_subject.basis, count=3)
    assert 17 in chosen
    assert len(set(chosen)) == 3


def test_json_round_trip(open_head, calibration):
    again = Calibration.from_json(calibration.to_json())
    assert np.abs(again.shape - calibration.shape).max() < 1e-5
    assert np.abs(again.offsets - calibration.offsets).max() < 1e-5
    assert again.fitter(open_head).camera == calibration.camera


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"focal": -1},
        {"focal": float("nan")},
        {"size": [512]},
        {"size": [1e9, 512]},
        {"shape": "none"},
        {"shape": [[1.0]]},
        {"shape": [float("inf")]},
        {"offsets": [1.0, 2.0]},
        {"gaze": []},
    ],
)
def test_damaged_json_is_refused(calibration, change):
    with pytest.raises(UserError) as error:
        Calibration.from_json(json.dumps({**json.loads(calibration.to_json()), **change}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_text_that_is_not_a_calibration_is_refused(text):
    with pytest.raises(UserError):
        Calibration.from_json(text)


def test_another_head_is_refused(flame_head, calibration):
    with pytest.raises(UserError, match="another head"):
        calibration.fitter(flame_head)

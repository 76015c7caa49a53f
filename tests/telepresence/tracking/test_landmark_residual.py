"""The landmark residual distinguishes subjects, and does not depend on pose, camera or expression."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.head import load_head
from insta_runtime.types import Camera, HeadState
from telepresence.runtime.frames import CameraFrame, GroundTruth
from telepresence.tracking.calibration import Calibration, calibrate
from telepresence.tracking.ground_truth_tracker import GroundTruthTracker
from telepresence.tracking.landmark_residual import AffineResidual, KnownSubject, LandmarkResidual, calibration_residual

SIZE = 512


def rms(residual) -> float:
    return float(np.sqrt((residual**2).sum(1).mean()))


def test_an_affine_map_causes_no_residual():
    rng = np.random.default_rng(3)
    points = rng.normal(0.0, 0.05, (80, 3))
    residuals = AffineResidual(points)
    turned = points @ rng.normal(0.0, 0.1, (3, 3)) + rng.normal(0.0, 0.01, 3)
    assert rms(residuals.residual(turned[:, :2])) < 1e-3
    moved = np.zeros((80, 2))
    moved[7] = 0.004, 0.0
    assert 0.3 < rms(residuals.residual(moved)) < 0.45  # 4 mm / sqrt(80), less the affine part


def other_subject(subject, rng):
    """A subject with another, random identity code, before the same camera."""
    shape = rng.normal(0.0, 1.0, len(subject.head.shape_dirs))
    return replace(subject, basis=subject.basis.with_identity(shape))


@pytest.fixture(scope="module")
def calibrated_subject(open_head, open_subject):
    """Calibration of a subject, and a function that returns the mean residual of new faces of any subject."""
    rng = np.random.default_rng(8)
    calibration = calibrate(
        open_head, [open_subject.face(open_subject.pose(rng), rng, noise=0.5) for _ in range(20)], SIZE, SIZE
    )

    def mean_residual(subject, shift=None) -> float:
        fitter = calibration.fitter(open_head)
        residuals = LandmarkResidual(fitter.basis, shift)
        faces = [subject.face(subject.pose(rng), rng, noise=0.5) for _ in range(12)]
        return rms(np.mean([residuals.residual(fitter.fit(face, None), fitter.camera) for face in faces], axis=0))

    return calibration, mean_residual


def test_the_same_subject_fits_in_any_pose_and_another_does_not(open_head, open_subject, calibrated_subject):
    _, mean_residual = calibrated_subject
    rng = np.random.default_rng(11)
    other = replace(
        open_subject, basis=open_subject.basis.with_identity(rng.normal(0.0, 1.0, len(open_head.shape_dirs)))
    )
    assert mean_residual(open_subject) < 0.4
    assert mean_residual(other) > 1.0


def test_a_new_calibration_with_a_known_identity_keeps_the_residual(open_head, open_subject, calibrated_subject):
    """Offsets calibrated on another person hide the residual; ``shift``, the change of the offsets, restores it."""
    calibration, _ = calibrated_subject
    rng = np.random.default_rng(12)
    other = replace(
        open_subject, basis=open_subject.basis.with_identity(rng.normal(0.0, 1.0, len(open_head.shape_dirs)))
    )
    faces = [other.face(other.pose(rng), rng, noise=0.5) for _ in range(20)]
    recalibrated = calibrate(open_head, faces, SIZE, SIZE, known=calibration.shape)
    fitter = recalibrated.fitter(open_head)
    shift = (recalibrated.offsets - calibration.offsets).astype(np.float64)

    def mean_residual(residuals: LandmarkResidual) -> float:
        return rms(np.mean([residuals.residual(fitter.fit(face, None), fitter.camera) for face in faces], axis=0))

    plain, shifted = (mean_residual(LandmarkResidual(fitter.basis, each)) for each in (None, shift))
    assert plain < 0.6 * shifted
    assert shifted > 1.0


def test_calibrations_of_the_same_subject_are_closer_than_those_of_two(open_head, open_subject, calibrated_subject):
    calibration, _ = calibrated_subject
    rng = np.random.default_rng(13)
    other = replace(
        open_subject, basis=open_subject.basis.with_identity(rng.normal(0.0, 1.0, len(open_head.shape_dirs)))
    )

    def calibrated(subject) -> Calibration:
        return calibrate(open_head, [subject.face(subject.pose(rng), rng, 0.5) for _ in range(20)], SIZE, SIZE)

    assert rms(calibration_residual(open_head, calibration, calibrated(open_subject))) < 0.5
    assert rms(calibration_residual(open_head, calibration, calibrated(other))) > 0.7


def test_the_ground_truth_tracker_reports_the_residual_of_another_subject():
    head = load_head()
    rng = np.random.default_rng(14)
    mine, theirs = (rng.normal(0.0, 0.7, len(head.shape_dirs)).astype(np.float32) for _ in range(2))
    tracker = GroundTruthTracker(head, mine, size=16)
    state = HeadState.neutral(len(head.expression_names))
    picture, matte = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)

    def residual(shape) -> float:
        truth = GroundTruth(state, matte, camera, shape=shape)
        found = tracker.track(CameraFrame(0, 0, picture, truth)).residual
        assert found is not None
        return rms(found)

    camera = Camera(20.0, 20.0, 8.0, 8.0, 16, 16)
    assert residual(mine) == 0.0
    assert residual(theirs) > 0.5
    np.testing.assert_array_equal(tracker.shape, mine)
    assert residual(mine) == 0.0
    tracker.recalibrate()
    assert residual(theirs) == 0.0
    found = tracker.residual_of(KnownSubject(mine, None))
    assert found is not None
    assert rms(found) > 0.5
    tracker.recalibrate(KnownSubject(mine, None))
    assert residual(theirs) > 0.5
    np.testing.assert_array_equal(tracker.shape, mine)

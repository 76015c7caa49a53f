"""What the misfit of a face tells apart: people, and not poses, cameras or expressions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.head import load_head
from insta_runtime.types import Camera, HeadState
from telepresence.runtime.frames import CameraFrame, Truth
from telepresence.tracking.calibration import Calibration, calibrate
from telepresence.tracking.proportions import Known, LandmarkProportions, Proportions, calibration_misfit
from telepresence.tracking.tracker import TruthTracker

SIZE = 512


def rms(misfit) -> float:
    return float(np.sqrt((misfit**2).sum(1).mean()))


def test_what_an_affine_map_does_is_no_misfit():
    rng = np.random.default_rng(3)
    points = rng.normal(0.0, 0.05, (80, 3))
    proportions = Proportions(points)
    turned = points @ rng.normal(0.0, 0.1, (3, 3)) + rng.normal(0.0, 0.01, 3)
    assert rms(proportions.misfit(turned[:, :2])) < 1e-3
    moved = np.zeros((80, 2))
    moved[7] = 0.004, 0.0
    assert 0.3 < rms(proportions.misfit(moved)) < 0.45  # 4 mm / sqrt(80), less what a map takes up


@pytest.fixture(scope="module")
def sitting(open_head, open_sitter):
    """A calibrated sitter, and a function: the mean misfit of new faces of somebody of this shape."""
    rng = np.random.default_rng(8)
    calibration = calibrate(
        open_head, [open_sitter.face(open_sitter.pose(rng), rng, noise=0.5) for _ in range(20)], SIZE, SIZE
    )

    def mean_misfit(sitter, shift=None) -> float:
        fitter = calibration.fitter(open_head)
        proportions = LandmarkProportions(fitter.basis, shift)
        faces = [sitter.face(sitter.pose(rng), rng, noise=0.5) for _ in range(12)]
        return rms(np.mean([proportions.misfit(fitter.fit(face, None), fitter.camera) for face in faces], axis=0))

    return calibration, mean_misfit


def test_the_same_person_fits_in_any_pose_and_another_does_not(open_head, open_sitter, sitting):
    _, mean_misfit = sitting
    rng = np.random.default_rng(11)
    other = replace(open_sitter, basis=open_sitter.basis.with_identity(rng.normal(0.0, 1.0, len(open_head.shape_dirs))))
    assert mean_misfit(open_sitter) < 0.4
    assert mean_misfit(other) > 1.0


def test_a_camera_that_calibrates_anew_still_remembers_the_proportions(open_head, open_sitter, sitting):
    """Offsets that were calibrated on whoever is there explain them away: ``shift`` is what they were before."""
    calibration, _ = sitting
    rng = np.random.default_rng(12)
    other = replace(open_sitter, basis=open_sitter.basis.with_identity(rng.normal(0.0, 1.0, len(open_head.shape_dirs))))
    faces = [other.face(other.pose(rng), rng, noise=0.5) for _ in range(20)]
    taken_in = calibrate(open_head, faces, SIZE, SIZE, known=calibration.shape)
    fitter = taken_in.fitter(open_head)
    shift = (taken_in.offsets - calibration.offsets).astype(np.float64)

    def mean_misfit(proportions: LandmarkProportions) -> float:
        return rms(np.mean([proportions.misfit(fitter.fit(face, None), fitter.camera) for face in faces], axis=0))

    plain, remembered = (mean_misfit(LandmarkProportions(fitter.basis, each)) for each in (None, shift))
    assert plain < 0.6 * remembered
    assert remembered > 1.0


def test_calibrations_compare_like_the_people_they_are_of(open_head, open_sitter, sitting):
    calibration, _ = sitting
    rng = np.random.default_rng(13)
    other = replace(open_sitter, basis=open_sitter.basis.with_identity(rng.normal(0.0, 1.0, len(open_head.shape_dirs))))

    def calibrated(sitter) -> Calibration:
        return calibrate(open_head, [sitter.face(sitter.pose(rng), rng, 0.5) for _ in range(20)], SIZE, SIZE)

    assert rms(calibration_misfit(open_head, calibration, calibrated(open_sitter))) < 0.5
    assert rms(calibration_misfit(open_head, calibration, calibrated(other))) > 0.7


def test_a_tracker_that_is_told_the_truth_says_who_else_it_is():
    head = load_head()
    rng = np.random.default_rng(14)
    mine, theirs = (rng.normal(0.0, 0.7, len(head.shape_dirs)).astype(np.float32) for _ in range(2))
    tracker = TruthTracker(head, mine, size=16)
    state = HeadState.neutral(len(head.expression_names))
    picture, matte = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)

    def misfit(shape) -> float:
        truth = Truth(state, matte, camera, shape=shape)
        found = tracker.track(CameraFrame(0, 0, picture, truth)).misfit
        assert found is not None
        return rms(found)

    camera = Camera(20.0, 20.0, 8.0, 8.0, 16, 16)
    assert misfit(mine) == 0.0
    assert misfit(theirs) > 0.5
    np.testing.assert_array_equal(tracker.shape, mine)
    assert misfit(mine) == 0.0
    tracker.recalibrate()
    assert misfit(theirs) == 0.0
    found = tracker.misfit_of(Known(mine, None))
    assert found is not None
    assert rms(found) > 0.5
    tracker.recalibrate(Known(mine, None))
    assert misfit(theirs) > 0.5
    np.testing.assert_array_equal(tracker.shape, mine)

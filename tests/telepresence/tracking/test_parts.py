"""Gaze estimation, tracking health, smoothing and crop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.geometry import eye_pose, rotation_matrix
from telepresence.tracking.crop import Crop, choose_crop
from telepresence.tracking.face_mesh import LANDMARKS
from telepresence.tracking.gaze import CORNERS, IRISES, RADIUS, Gaze
from telepresence.tracking.head_fit import Pinhole
from telepresence.tracking.health import ERROR_RATIO, TrackingHealth
from telepresence.tracking.landmarks import FaceLandmarks
from telepresence.tracking.smoothing import smooth, smooth_run

CAMERA = Pinhole.of_frame(512, 512, 614.4)


def face_at(x: float, y: float, size: float) -> FaceLandmarks:
    """Landmarks that fill a square around (x, y)."""
    corner = np.random.default_rng(0).uniform(-0.5, 0.5, (LANDMARKS, 3))
    corner[:2] = [[-0.5, -0.5, 0], [0.5, 0.5, 0]]
    return FaceLandmarks((corner * size + [x, y, 0]).astype(np.float32), {})


# Gaze


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.3, 0.1), (-0.2, -0.25)])
def test_gaze_comes_back_from_the_irises_it_makes(open_subject, yaw, pitch):
    pose = open_subject.pose(np.random.default_rng(3), turn=0.2)
    gaze = Gaze.of_head(open_subject.head, np.zeros(len(open_subject.head.shape_dirs)), np.zeros((2, 2)))
    turns = eye_pose(np.array([[yaw, pitch]] * 2))
    face = open_subject.face(pose, np.random.default_rng(0), noise=0.0)
    for eye in range(2):
        look = rotation_matrix(turns[eye]) @ np.array([0.0, 0.0, RADIUS])
        iris = pose.rotation @ (gaze.eyes[eye] + look) + pose.translation
        face.points[IRISES[eye], :2] = 614.4 * iris[:2] / iris[2] + 256
    face.scores.update(eyeBlinkLeft=0.0, eyeBlinkRight=0.0)
    found = gaze.angles(pose, face, CAMERA, open_subject.basis.indices)
    assert np.abs(found - [[yaw, pitch]] * 2).max() < 0.01

    # A fit that misses the whole eye by some pixels does not turn it; a closed eye keeps its gaze.
    residual = pose.residual.copy()
    residual[np.isin(open_subject.basis.indices, CORNERS[0])] = [4.0, -2.0]
    face.points[IRISES[0], :2] += [4.0, -2.0]
    face.points[IRISES[1], :2] += 30.0
    face.scores["eyeBlinkRight"] = 0.9
    again = gaze.angles(replace(pose, residual=residual), face, CAMERA, open_subject.basis.indices)
    assert np.abs(again - found).max() < 0.01


# Health


def test_a_bad_fit_is_a_loss_and_three_good_ones_end_it(open_subject):
    good = replace(open_subject.pose(np.random.default_rng(1), turn=0.1), error=1.0)
    bad = replace(good, error=8.0)
    health = TrackingHealth(CAMERA, usual_error=1.0)
    assert [health.update(fit) for fit in (good, bad, None, good, good, good, good)] == [
        *(True, False, False, False, False, True, True)
    ]


def test_the_error_is_judged_against_the_usual_one(open_subject):
    pose = open_subject.pose(np.random.default_rng(1), turn=0.1)
    assert not TrackingHealth(CAMERA, 2.0).update(replace(pose, error=2.0 * ERROR_RATIO + 0.5))
    assert TrackingHealth(CAMERA, 4.0).update(replace(pose, error=2.0 * ERROR_RATIO + 0.5))


@pytest.mark.parametrize("turn", [[0, 0.6, 0], [0.5, 0, 0.3]])
def test_a_jump_is_a_loss(open_subject, turn):
    pose = replace(open_subject.pose(np.random.default_rng(1), turn=0.1), error=1.0)
    health = TrackingHealth(CAMERA, 1.0)
    assert health.update(pose)
    assert not health.update(replace(pose, rotation=rotation_matrix(np.array(turn)) @ pose.rotation))
    health = TrackingHealth(CAMERA, 1.0)
    assert health.update(pose)
    assert not health.update(replace(pose, translation=1.3 * pose.translation))


# Smoothing


def test_smoothing_does_not_lag():
    line = np.arange(40, dtype=np.float32)[:, None]
    assert np.abs(smooth_run(line, 1.0) - line)[3:-3].max() < 1e-4
    pulse = np.zeros((21, 1), np.float32)
    pulse[10] = 1.0
    soft = smooth_run(pulse, 1.0)[:, 0]
    assert np.abs(soft - soft[::-1]).max() < 1e-6
    assert soft.argmax() == 10


def test_smoothing_does_not_cross_a_loss():
    near, far = face_at(100, 100, 50), face_at(400, 400, 50)
    faces = [near] * 5 + [None] * 2 + [far] * 5
    result = smooth(faces, 30.0)
    assert [face is None for face in result] == [face is None for face in faces]
    assert np.abs(result[4].points - near.points).max() < 1e-3
    assert np.abs(result[7].points - far.points).max() < 1e-3


# Crop


def test_crop_policies():
    large, small = face_at(640, 360, 300), face_at(1000, 300, 100)
    assert choose_crop("auto", [large], 1280, 720, 512) == Crop(280, 0, 720, 512)
    assert choose_crop("center", [small], 1280, 720, 512) == Crop(280, 0, 720, 512)
    head = choose_crop("auto", [small], 1280, 720, 512)
    assert head.side < 300
    assert head.left < 940 < 1060 < head.left + head.side
    assert head.top < 240 < 360 < head.top + head.side
    assert choose_crop("head", [large], 1280, 720, 512).side <= 720


def test_a_head_crop_covers_where_the_head_moved():
    faces = [face_at(x, 300, 80) for x in np.linspace(300, 600, 50)]
    crop = choose_crop("head", faces, 1280, 720, 256)
    assert crop.left < 270
    assert crop.left + crop.side > 630


@pytest.mark.parametrize("window", [(0, 0, 64), (10, 3, 40), (-12, 20, 64), (30, 30, 34)])
def test_the_crop_camera_sees_what_the_crop_shows(window):
    """A bright dot lands where the crop's camera projects it."""
    crop = Crop(*window, 128)
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[40:43, 44:47] = 255  # centre at (45.5, 41.5)
    camera = crop.camera(Pinhole.of_frame(64, 64, 80.0))
    x, y = (45.5 - 32) / 80.0, (41.5 - 32) / 80.0
    shown = crop.apply(rgb)[..., 0].astype(float)
    rows, columns = np.indices(shown.shape) + 0.5
    assert shown.shape == (128, 128)
    assert (shown * columns).sum() / shown.sum() == pytest.approx(camera.fx * x + camera.cx, abs=0.3)
    assert (shown * rows).sum() / shown.sum() == pytest.approx(camera.fy * y + camera.cy, abs=0.3)

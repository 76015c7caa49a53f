"""Texture map: bundle adjustment, matching of corners, and learning of landmark offsets."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from insta_runtime.geometry import rotation_matrix
from telepresence.tracking.bundle_adjustment import BundleViews, project
from telepresence.tracking.head_fit import HeadFit
from telepresence.tracking.head_tracker import LandmarkOffsets
from telepresence.tracking.texture_map import TextureMap

FOCAL = 600.0
SIZE = 512  # px, of the subject's camera


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    """Angle between two rotations, in degrees."""
    return float(np.rad2deg(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1))))


def scene(rng: np.random.Generator, noise: float) -> tuple[BundleViews, BundleViews]:
    """Eight views of eighty points on a spherical cap: ground truth, and initial values with noise and outliers."""
    points = rng.normal(0.0, 1.0, (80, 3))
    points = 0.09 * np.abs(points / np.linalg.norm(points, axis=1, keepdims=True)) * [1, 1, 0.7]
    facing = np.diag([1.0, -1.0, -1.0])
    rotations = np.stack([rotation_matrix(rng.uniform(-0.3, 0.3, 3)) @ facing for _ in range(8)])
    translations = np.array([0.0, 0.0, 0.5]) + rng.uniform(-0.03, 0.03, (8, 3))
    pixels, _, _ = project(points, rotations, translations, FOCAL)
    pixels = pixels + rng.normal(0.0, noise, pixels.shape)
    wrong = rng.random(pixels.shape[:2]) < 0.05
    pixels[wrong] += rng.uniform(-20.0, 20.0, (int(wrong.sum()), 2))
    guesses = points + rng.normal(0.0, 0.01, points.shape)
    turned = np.stack([rotation_matrix(rng.normal(0.0, 0.02, 3)) @ turn for turn in rotations])
    moved = translations + rng.normal(0.0, 0.002, (8, 3))
    seen = rng.random(pixels.shape[:2]) < 0.8
    known = np.tile(np.diag([50.0] * 3 + [5e4] * 3), (8, 1, 1))
    truth = BundleViews(rotations, translations, points, guesses, pixels, seen, rotations, translations, known)
    return truth, BundleViews(turned, moved, guesses, guesses, pixels, seen, turned.copy(), moved.copy(), known)


def test_jacobians_of_the_projection_match_finite_differences():
    truth, _ = scene(np.random.default_rng(0), 0.0)
    pixels, by_point, by_pose = project(truth.points, truth.rotations, truth.translations, FOCAL)
    step = np.array([2e-6, -1e-6, 3e-6])
    moved, _, _ = project(truth.points + step, truth.rotations, truth.translations, FOCAL)
    assert np.abs(moved - pixels - by_point @ step).max() < 1e-6
    turned, _, _ = project(truth.points, rotation_matrix(step) @ truth.rotations, truth.translations + step, FOCAL)
    assert np.abs(turned - pixels - by_pose @ np.concatenate([step, step])).max() < 1e-6


def test_bundle_adjustment_finds_poses_and_points_despite_outliers():
    truth, views = scene(np.random.default_rng(1), 0.3)

    def relative(rotations: np.ndarray) -> float:
        """Mean error of the rotations relative to the first view, in degrees; independent of the frame of reference."""
        wanted = truth.rotations[0].T @ truth.rotations
        return float(np.mean([angle_between(a, b) for a, b in zip(wanted, rotations[0].T @ rotations, strict=True)]))

    before = relative(views.rotations)
    covariances = views.adjust(FOCAL, 0.3, 20)
    assert before > 1.5
    assert relative(views.rotations) < 0.3 * before
    pixels, _, _ = project(views.points, views.rotations, views.translations, FOCAL)
    missed = np.linalg.norm(pixels - views.pixels, axis=2)[views.seen]
    assert np.median(missed) < 0.5
    assert covariances.shape == (80, 3, 3)
    assert (np.linalg.eigvalsh(covariances) > 0).all()
    assert np.median(np.sqrt(np.linalg.eigvalsh(covariances)[:, -1])) < 0.003, "m, along the line of sight"


@pytest.fixture
def looking(open_subject) -> HeadFit:
    turn = np.diag([1.0, -1.0, -1.0])
    count = len(open_subject.basis.indices)
    return HeadFit(
        turn, np.array([0.0, 0.0, 0.55]), np.zeros(open_subject.basis.units), np.zeros(3), np.zeros((count, 2)), 0.0
    )


def test_texture_corrects_the_pose_of_biased_landmarks(open_subject, looking: HeadFit):
    rng = np.random.default_rng(2)
    noise = cv2.GaussianBlur(rng.normal(0.0, 1.0, (SIZE, SIZE)), (0, 0), 2.5)
    grey = np.clip(128 + 30 * noise / noise.std(), 0, 255).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, 2)
    fitter = open_subject.fitter
    camera = fitter.camera
    face = open_subject.face(looking, rng, 0.0, 0.0)
    texture = TextureMap(open_subject.head, np.zeros(len(open_subject.head.shape_dirs), np.float32), camera, 200.0)
    assert texture.needs_keyframe(looking)
    crop = texture.window(face)
    patch = texture.extract(rgb, crop)
    assert patch.shape == (crop.size, crop.size)
    assert texture.match(patch, crop, looking) is None, "there is no keyframe yet"
    matte = np.ones((crop.size, crop.size), np.float32)
    texture.add_keyframe(patch, crop, matte, face, looking, looking, fitter.pose_information(looking, face))
    assert not texture.needs_keyframe(looking)

    # A roll of the camera about its axis rotates the whole frame, independent of depth.
    roll = rotation_matrix(np.array([0.0, 0.0, 0.12]))
    truth = replace(looking, rotation=roll @ looking.rotation, translation=roll @ looking.translation)
    about = cv2.getRotationMatrix2D((camera.cx - 0.5, camera.cy - 0.5), -np.rad2deg(0.12), 1.0)
    rolled = cv2.warpAffine(rgb, about, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    biased = open_subject.face(truth, rng, 0.0, 0.0)
    points = biased.points.copy()
    points[:, :2] = (points[:, :2] - SIZE / 2) @ rotation_matrix(np.array([0.0, 0.0, -0.03]))[:2, :2].T + SIZE / 2
    biased = replace(biased, points=points)
    start = fitter.fit(biased, None)
    crop = texture.window(biased)
    matches = texture.match(texture.extract(rolled, crop), crop, start)
    assert matches is not None
    assert len(matches.points) >= 30
    fit = fitter.fit(biased, None, texture=matches, start=start)
    wrong = angle_between(truth.rotation, start.rotation)
    assert wrong > 1.4
    assert angle_between(truth.rotation, fit.rotation) < 0.6 * wrong
    left = truth.rotation @ fit.rotation.T
    assert abs(left[0, 1] - left[1, 0]) / 2 < 0.005, "rad of roll, of 0.03"
    blank = texture.extract(np.full_like(rgb, 90), crop)
    assert texture.match(blank, crop, start) is None


def test_keyframes_are_replaced_by_views_that_differ_more(open_subject, looking: HeadFit):
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    face = open_subject.face(looking, rng, 0.0)
    texture = TextureMap(
        open_subject.head, np.zeros(len(open_subject.head.shape_dirs), np.float32), open_subject.camera, 200.0
    )
    crop = texture.window(face)
    patch, matte = texture.extract(rgb, crop), np.ones((crop.size, crop.size), np.float32)
    information = open_subject.fitter.pose_information(looking, face)
    added = 0
    for degrees in [*range(0, 60, 3), 80]:
        turn = rotation_matrix(np.array([0.0, np.deg2rad(degrees), 0.0]))
        fit = replace(looking, rotation=turn @ looking.rotation)
        if texture.needs_keyframe(fit):
            texture.add_keyframe(patch, crop, matte, face, fit, fit, information)
            added += 1
            assert not texture.needs_keyframe(fit)
    assert 10 < added < 21, "a full map requires a larger difference"


def test_landmark_offsets_contain_the_face_and_no_pose(open_subject):
    rng = np.random.default_rng(4)
    basis = open_subject.basis
    own = rng.normal(0.0, 0.001, basis.base.shape)
    person = replace(open_subject, basis=basis.moved(own))
    offsets = LandmarkOffsets(basis, np.zeros_like(basis.base))
    turn = rotation_matrix(np.array([0.0, 0.0, 0.02]))
    for _ in range(50):
        pose = person.pose(rng, 0.3)
        face = person.face(pose, rng, 0.2, 0.0)
        # A constant error of the pose must not become part of the offsets.
        offsets.learn(open_subject.fitter, replace(pose, rotation=pose.rotation @ turn), face)
    change = offsets.values
    seen = basis.normals[:, 2] > 0.5
    assert np.corrcoef(change[seen, :2].ravel(), own[seen, :2].ravel())[0, 1] > 0.8
    shifted = basis.base - basis.base.mean(0)
    rolled = np.cross([0.0, 0.0, 1.0], shifted)
    assert abs((change * rolled).sum() / (rolled**2).sum()) < 0.005, "rad, of 0.02"

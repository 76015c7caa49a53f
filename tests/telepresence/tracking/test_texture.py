"""The texture of the head: bundle adjustment, corners found again, what landmarks may learn from it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from insta_runtime.geometry import rotation_matrix
from telepresence.tracking.bundle import Views, project
from telepresence.tracking.fit import HeadFit
from telepresence.tracking.follower import LandmarkOffsets
from telepresence.tracking.texture import TextureMap

FOCAL = 600.0
SIZE = 512  # of the sitter's camera


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    """Degrees between two rotations."""
    return float(np.rad2deg(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1))))


def scene(rng: np.random.Generator, noise: float) -> tuple[Views, Views]:
    """Eight views of eighty points on a cap: as they are, and as they are guessed from noisy pictures."""
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
    truth = Views(rotations, translations, points, guesses, pixels, seen, rotations, translations, known)
    return truth, Views(turned, moved, guesses, guesses, pixels, seen, turned.copy(), moved.copy(), known)


def test_projections_change_as_their_derivatives_say():
    truth, _ = scene(np.random.default_rng(0), 0.0)
    pixels, by_point, by_pose = project(truth.points, truth.rotations, truth.translations, FOCAL)
    step = np.array([2e-6, -1e-6, 3e-6])
    moved, _, _ = project(truth.points + step, truth.rotations, truth.translations, FOCAL)
    assert np.abs(moved - pixels - by_point @ step).max() < 1e-6
    turned, _, _ = project(truth.points, rotation_matrix(step) @ truth.rotations, truth.translations + step, FOCAL)
    assert np.abs(turned - pixels - by_pose @ np.concatenate([step, step])).max() < 1e-6


def test_bundle_adjustment_finds_poses_and_points_among_mistakes():
    truth, views = scene(np.random.default_rng(1), 0.3)

    def relative(rotations: np.ndarray) -> float:
        """Degrees, of the turns between the views: what does not depend on the frame of reference."""
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
def looking(open_sitter) -> HeadFit:
    turn = np.diag([1.0, -1.0, -1.0])
    count = len(open_sitter.basis.indices)
    return HeadFit(
        turn, np.array([0.0, 0.0, 0.55]), np.zeros(open_sitter.basis.units), np.zeros(3), np.zeros((count, 2)), 0.0
    )


def test_texture_holds_the_pose_where_landmarks_are_biased(open_sitter, looking: HeadFit):
    rng = np.random.default_rng(2)
    noise = cv2.GaussianBlur(rng.normal(0.0, 1.0, (SIZE, SIZE)), (0, 0), 2.5)
    grey = np.clip(128 + 30 * noise / noise.std(), 0, 255).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, 2)
    fitter = open_sitter.fitter
    camera = fitter.camera
    face = open_sitter.face(looking, rng, 0.0, 0.0)
    texture = TextureMap(open_sitter.head, np.zeros(len(open_sitter.head.shape_dirs), np.float32), camera, 200.0)
    assert texture.is_novel(looking)
    crop = texture.window(face)
    picture = texture.look(rgb, crop)
    assert picture.shape == (crop.size, crop.size)
    assert texture.find(picture, crop, looking) is None, "nothing is known yet"
    matte = np.ones((crop.size, crop.size), np.float32)
    texture.add(picture, crop, matte, face, looking, looking, fitter.pose_information(looking, face))
    assert not texture.is_novel(looking)

    # The camera rolls about its axis: so does the picture, whatever is in it and however far away.
    roll = rotation_matrix(np.array([0.0, 0.0, 0.12]))
    truth = replace(looking, rotation=roll @ looking.rotation, translation=roll @ looking.translation)
    about = cv2.getRotationMatrix2D((camera.cx - 0.5, camera.cy - 0.5), -np.rad2deg(0.12), 1.0)
    rolled = cv2.warpAffine(rgb, about, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    biased = open_sitter.face(truth, rng, 0.0, 0.0)
    points = biased.points.copy()
    points[:, :2] = (points[:, :2] - SIZE / 2) @ rotation_matrix(np.array([0.0, 0.0, -0.03]))[:2, :2].T + SIZE / 2
    biased = replace(biased, points=points)
    start = fitter.fit(biased, None)
    crop = texture.window(biased)
    sightings = texture.find(texture.look(rolled, crop), crop, start)
    assert sightings is not None
    assert len(sightings.points) >= 30
    fit = fitter.fit(biased, None, texture=sightings, start=start)
    wrong = angle_between(truth.rotation, start.rotation)
    assert wrong > 1.4
    assert angle_between(truth.rotation, fit.rotation) < 0.6 * wrong
    left = truth.rotation @ fit.rotation.T
    assert abs(left[0, 1] - left[1, 0]) / 2 < 0.005, "rad of roll, of 0.03"
    blank = texture.look(np.full_like(rgb, 90), crop)
    assert texture.find(blank, crop, start) is None


def test_keyframes_make_room_for_views_that_differ_more(open_sitter, looking: HeadFit):
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    face = open_sitter.face(looking, rng, 0.0)
    texture = TextureMap(
        open_sitter.head, np.zeros(len(open_sitter.head.shape_dirs), np.float32), open_sitter.camera, 200.0
    )
    crop = texture.window(face)
    picture, matte = texture.look(rgb, crop), np.ones((crop.size, crop.size), np.float32)
    information = open_sitter.fitter.pose_information(looking, face)
    added = 0
    for degrees in [*range(0, 60, 3), 80]:
        turn = rotation_matrix(np.array([0.0, np.deg2rad(degrees), 0.0]))
        fit = replace(looking, rotation=turn @ looking.rotation)
        if texture.is_novel(fit):
            texture.add(picture, crop, matte, face, fit, fit, information)
            added += 1
            assert not texture.is_novel(fit)
    assert 10 < added < 21, "a full map is choosier"


def test_offsets_learn_a_face_but_no_pose(open_sitter):
    rng = np.random.default_rng(4)
    basis = open_sitter.basis
    own = rng.normal(0.0, 0.001, basis.base.shape)
    person = replace(open_sitter, basis=basis.moved(own))
    offsets = LandmarkOffsets(basis, np.zeros_like(basis.base))
    turn = rotation_matrix(np.array([0.0, 0.0, 0.02]))
    for _ in range(50):
        pose = person.pose(rng, 0.3)
        face = person.face(pose, rng, 0.2, 0.0)
        # A pose that is wrong in the same way each time must not become part of the face.
        offsets.learn(open_sitter.fitter, replace(pose, rotation=pose.rotation @ turn), face)
    change = offsets.values
    seen = basis.normals[:, 2] > 0.5
    assert np.corrcoef(change[seen, :2].ravel(), own[seen, :2].ravel())[0, 1] > 0.8
    shifted = basis.base - basis.base.mean(0)
    rolled = np.cross([0.0, 0.0, 1.0], shifted)
    assert abs((change * rolled).sum() / (rolled**2).sum()) < 0.005, "rad, of 0.02"

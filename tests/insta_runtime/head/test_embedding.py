"""Landmark embedding: stored positions, and the detection of landmarks in a rendered face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from insta_runtime.head import HeadModel, HeadRig, load_head
from insta_runtime.head.model import SKIN
from insta_runtime.render.raster import rasterise
from insta_runtime.types import Camera, HeadState
from telepresence.tracking import landmark_embedding
from telepresence.tracking.canonical_face import mirror_landmarks
from telepresence.tracking.clay_renders import render_clay
from telepresence.tracking.face_models import FaceModels
from telepresence.tracking.surface_points import _nearest_in_triangle, geometric_median, spread


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


@pytest.fixture(scope="module")
def points(head: HeadModel) -> np.ndarray:
    return head.embedding.points(head.template, head.faces)


def test_fields(head):
    embedding = head.embedding
    assert embedding.face.shape == embedding.sd.shape == embedding.keep.shape == embedding.weight.shape == (478,)
    assert (embedding.face[468:] == -1).all(), "an iris lies on no triangle of the skin"
    carried = embedding.face >= 0
    assert carried[embedding.keep].all()
    assert (head.face_group[embedding.face[carried]] == SKIN).all()
    assert np.abs(embedding.bary.sum(1) - 1.0).max() < 1e-5
    assert embedding.bary.min() >= 0.0
    assert 340 < embedding.keep.sum() < 420
    assert (embedding.weight[~embedding.keep] == 0.0).all()
    assert (embedding.weight[embedding.keep] > 0.0).all()
    assert np.median(embedding.sd[carried]) < 0.004


def test_known_landmarks_have_the_right_positions(head, points):
    tip = head.template[head.vertex_group() == SKIN]
    assert np.linalg.norm(points[1] - tip[tip[:, 2].argmax()]) < 0.006, "tip of the nose"
    assert points[13, 1] > points[14, 1], "the upper lip is above the lower"
    assert points[33, 0] < head.joints[4, 0] < points[133, 0], "corners of the right eye"
    assert points[362, 0] < head.joints[3, 0] < points[263, 0], "corners of the left eye"
    assert points[152, 1] == points[[152, 1, 13, 33, 10], 1].min(), "chin"
    assert points[10, 1] == points[[152, 1, 13, 33, 10], 1].max(), "forehead"


def test_lips_open_at_the_landmarks(head):
    rig = HeadRig(head)
    wide = rig.canonical(np.zeros(len(head.shape_dirs)), 0.6).vertices.numpy()
    opened = head.embedding.points(wide, head.faces)
    for upper, lower in ((82, 87), (13, 14), (312, 317)):
        assert opened[upper, 1] - opened[lower, 1] > 0.008


def test_landmarks_stay_on_their_feature_when_the_identity_changes(head, points):
    """A landmark near the nose tip or a lid stays near it for other people."""
    rng = np.random.default_rng(0)
    code = 0.7 * rng.standard_normal(60).astype(np.float32)
    vertices = head.template + np.tensordot(code, head.shape_dirs, 1)
    joints = head.joints + np.tensordot(code, head.joint_shape_dirs, 1)
    moved = head.embedding.points(vertices, head.faces)
    for landmark, joint in ((33, 4), (133, 4), (362, 3), (263, 3)):
        before = np.linalg.norm(points[landmark] - head.joints[joint])
        assert abs(np.linalg.norm(moved[landmark] - joints[joint]) - before) < 0.008


def test_nearest_in_triangle_agrees_with_sampling():
    rng = np.random.default_rng(1)
    grid = rng.dirichlet([0.6, 0.6, 0.6], 20000)
    for _ in range(20):
        corners, point = rng.normal(size=(3, 3)), rng.normal(size=3)
        bary = _nearest_in_triangle(point, corners)
        assert bary.min() >= 0.0
        assert abs(bary.sum() - 1.0) < 1e-9
        best = np.linalg.norm(grid @ corners - point, axis=1).min()
        assert np.linalg.norm(bary @ corners - point) < best + 1e-9
        assert np.linalg.norm(bary @ corners - point) > best - 0.05


def test_the_geometric_median_ignores_outliers():
    rng = np.random.default_rng(2)
    cloud = np.concatenate([rng.normal(0.0, 1e-3, (40, 3)), np.full((8, 3), 0.05)])
    assert np.linalg.norm(geometric_median(cloud, np.ones(48))) < 1e-3
    assert 1e-3 < spread(cloud, np.ones(48)) < 4e-3


def test_baked_and_cached_embeddings_come_back(head, tmp_path, monkeypatch):
    assert (
        landmark_embedding.embedding_for(head, FaceModels(tmp_path / "there is no landmarker here")) is head.embedding
    )
    landmarker = tmp_path / "face_landmarker.task"
    landmarker.write_bytes(b"another")
    monkeypatch.setattr(FaceModels, "landmarker", lambda _: landmarker)
    monkeypatch.setattr(landmark_embedding, "compute_embedding", lambda *_: head.embedding)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(tmp_path))
    bare = replace(head, embedding=None)
    first = landmark_embedding.embedding_for(bare, FaceModels())
    monkeypatch.setattr(landmark_embedding, "compute_embedding", lambda *_: pytest.fail("it was cached"))
    second = landmark_embedding.embedding_for(bare, FaceModels())
    for name, array in first.arrays().items():
        assert np.array_equal(array, second.arrays()[name]), name


def test_an_embedding_that_cannot_be_cached_is_used(head, tmp_path, monkeypatch, caplog):
    landmarker = tmp_path / "face_landmarker.task"
    landmarker.write_bytes(b"another")
    monkeypatch.setattr(FaceModels, "landmarker", lambda _: landmarker)
    monkeypatch.setattr(landmark_embedding, "compute_embedding", lambda *_: head.embedding)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(landmarker / "no folder"))
    assert landmark_embedding.embedding_for(replace(head, embedding=None), FaceModels()) is head.embedding
    assert "cannot be written" in caplog.text


def test_mirrored_landmarks(shared: Path, head, points):
    twins = mirror_landmarks(shared / "models" / "face_landmarker.task")
    assert np.array_equal(twins[twins], np.arange(478))
    assert twins[33] == 263
    assert twins[473] == 468
    kept = np.flatnonzero(head.embedding.keep)
    away = np.linalg.norm(points[twins[kept]] * (-1, 1, 1) - points[kept], axis=1)
    assert np.median(away) < 5e-5
    assert away.max() < 1e-3


def test_landmarks_are_detected_where_the_embedding_has_them(face_models: FaceModels, head):
    code = 0.5 * np.random.default_rng(9).standard_normal(60).astype(np.float32)
    state = HeadState.neutral(52)
    state.expression[head.expression_names.index("jawOpen")] = 0.3
    mesh = HeadRig(head).pose(code, state)
    camera = Camera(800.0, 800.0, 256.0, 256.0, 512, 512)
    in_camera = mesh.vertices * torch.tensor([1.0, -1.0, -1.0]) + torch.tensor([0.0, 0.02, 0.75])
    picture = render_clay(in_camera, rasterise(in_camera, mesh.faces, camera))
    found = face_models.face_mesh(live=False).detect(picture)
    assert found is not None
    seen = found[0][:, :2]
    x, y, z = head.embedding.points(in_camera.numpy(), head.faces).T
    expected = np.stack([800 * x / z + 256, 800 * y / z + 256], 1)
    keep = head.embedding.keep
    assert np.linalg.norm(seen - expected, axis=1)[keep].mean() < 4.0

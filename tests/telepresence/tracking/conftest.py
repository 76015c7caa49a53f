"""Fixtures: subjects whose landmarks are known exactly, and a head model in FLAME's layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadModel, LandmarkEmbedding, load_head
from telepresence.tracking.face_mesh import LANDMARKS
from telepresence.tracking.head_fit import HeadFit, HeadFitter, Pinhole
from telepresence.tracking.landmark_basis import LandmarkBasis, landmark_basis
from telepresence.tracking.landmarks import FaceLandmarks

SIZE = 512
CAMERA = Pinhole.of_frame(SIZE, SIZE, 1.2 * SIZE)


@dataclass(frozen=True)
class Subject:
    """A synthetic subject before a camera: generates poses and the landmarks that a detector would find."""

    head: HeadModel
    basis: LandmarkBasis
    camera: Pinhole = CAMERA

    @property
    def fitter(self) -> HeadFitter:
        return HeadFitter(self.basis, self.camera)

    def pose(self, rng: np.random.Generator, turn: float = 0.35) -> HeadFit:
        """Random head pose and expression."""
        units = np.clip(rng.normal(0.1, 0.25, self.basis.units), self.basis.priors.low, self.basis.priors.high)
        jaw = np.array([rng.uniform(0, 0.3), 0.0, 0.0]) if self.basis.has_jaw else np.zeros(3)
        matrix = rotation_matrix(rng.uniform(-turn, turn, 3)) @ np.diag([1.0, -1.0, -1.0])
        place = np.array([*rng.uniform(-0.03, 0.03, 2), rng.uniform(0.4, 0.7)])
        return HeadFit(matrix, place, units, jaw, np.zeros((len(self.basis.indices), 2)), 0.0)

    def face(self, pose: HeadFit, rng: np.random.Generator, noise: float, score_noise: float = 0.1) -> FaceLandmarks:
        """Landmarks of a detector with ``noise`` px of noise, and scores near the true units."""
        seen = self.basis.points(pose.units, pose.jaw) @ pose.rotation.T + pose.translation
        pixels = self.fitter.project(pose)
        points = np.zeros((LANDMARKS, 3), np.float32)
        points[self.basis.indices, :2] = pixels + rng.normal(0.0, noise, pixels.shape)
        points[self.basis.indices, 2] = (seen[:, 2] - seen[:, 2].mean()) * self.camera.focal / pose.translation[2]
        scores = {
            name: float(np.clip(unit + rng.normal(0.0, score_noise), 0.0, 1.0))
            for name, unit in zip(self.basis.priors.names, pose.units, strict=True)
            if name is not None
        }
        if self.basis.has_jaw:
            scores["jawOpen"] = float(pose.jaw[0] / 0.42)
        return FaceLandmarks(points, scores)


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    """Angle between two rotations, in degrees."""
    return float(np.rad2deg(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1))))


@pytest.fixture(scope="session")
def open_head() -> HeadModel:
    return load_head()


@pytest.fixture(scope="session")
def flame_head(open_head: HeadModel) -> HeadModel:
    """A head model with FLAME's parameters (PCA expressions, jaw joint, correctives) on the open head's mesh."""
    rng = np.random.default_rng(3)
    vertices = len(open_head.template)
    moves = open_head.expression_dirs[[not name.startswith("jaw") for name in open_head.expression_names]]
    return replace(
        open_head,
        name="flame layout",
        basis="flame",
        sha256="f" * 64,
        expression_dirs=(0.5 * moves).astype(np.float32),
        expression_names=tuple(f"expression_{i:02d}" for i in range(len(moves))),
        pose_dirs=rng.normal(0.0, 2e-4, (36, vertices, 3)).astype(np.float32),
        eyelid_dirs=open_head.expression_dirs[
            [open_head.expression_names.index(name) for name in ("eyeBlinkLeft", "eyeBlinkRight")]
        ],
        skin_weights=_with_jaw(open_head),
    )


def _with_jaw(head: HeadModel) -> np.ndarray:
    """Skinning weights of the jaw joint, proportional to the displacement by jawOpen."""
    opening = np.linalg.norm(head.expression_dirs[head.expression_names.index("jawOpen")], axis=1)
    jaw = (opening / opening.max())[:, None]
    turned = np.zeros((len(jaw), 5))
    turned[:, 2] = 1.0
    return ((1 - jaw) * head.skin_weights + jaw * turned).astype(np.float32)


@pytest.fixture(scope="session", params=["open", "flame"])
def subject(request: pytest.FixtureRequest, open_head: HeadModel, flame_head: HeadModel) -> Subject:
    head = open_head if request.param == "open" else flame_head
    assert isinstance(head.embedding, LandmarkEmbedding)
    rng = np.random.default_rng(1)
    return Subject(head, landmark_basis(head).with_identity(rng.normal(0.0, 0.3, len(head.shape_dirs))))


@pytest.fixture(scope="session")
def open_subject(open_head: HeadModel) -> Subject:
    rng = np.random.default_rng(1)
    return Subject(open_head, landmark_basis(open_head).with_identity(rng.normal(0.0, 0.3, len(open_head.shape_dirs))))

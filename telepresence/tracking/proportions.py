"""How the face in a picture differs from the proportions that calibration found: numbers that tell people apart.

After the head fit, the landmarks of another person lie beside those of the calibrated one, always in the same way.
Half of the landmarks are taken, those that expressions move least.  What an affine map of the head can do is left out:
wrong pitch, depth or focal length look like that, and so a face is its own whatever the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from insta_runtime.head import HeadModel
from insta_runtime.head.model import SKIN
from insta_runtime.types import Float32, Float64

from .basis import Indices, LandmarkBasis, landmark_basis
from .calibration import Calibration
from .fit import HeadFit, Pinhole

STEADY = 0.5  # part of the landmarks that are compared: those that expressions move least
FACE_VERTICES = 400  # about, that are compared where there are no landmarks


@dataclass(frozen=True)
class Known:
    """Somebody who was tracked before: identity code ``shape`` (S,), and the calibration; None of exact states."""

    shape: Float32
    calibration: Calibration | None


class Proportions:
    """Compares points of faces with those of one person.

    Args:
        points: (N, 3) m, where they lie on the person's head at rest.
    """

    def __init__(self, points: Float64) -> None:
        centred = points - points.mean(0)
        self._affine, _ = np.linalg.qr(np.column_stack([np.ones(len(points)), centred]))  # (N, 4)

    def misfit(self, offset: Float64) -> Float32:
        """(N, 2) float32 mm: what is left of ``offset`` (N, 2), m in x and y of the head, besides an affine map."""
        left = offset - self._affine @ (self._affine.T @ offset)
        return (1000.0 * left).astype(np.float32)


class LandmarkProportions:
    """The proportions that a face's landmarks show while they are fitted with a person's ``basis``.

    ``shift`` (L, 3) m: how far the landmarks of that basis lie from where the person's are known to.
    """

    def __init__(self, basis: LandmarkBasis, shift: Float64 | None = None) -> None:
        self._steady = steady_landmarks(basis)
        self._proportions = Proportions(basis.base[self._steady])
        self._shift = 0.0 if shift is None else shift[self._steady]

    def misfit(self, fit: HeadFit, camera: Pinhole) -> Float32:
        """(N, 2) float32 mm: how the face that was fitted lies beside the person's."""
        metres = fit.residual[self._steady] * (fit.translation[2] / camera.focal)
        beside = np.column_stack([metres, np.zeros(len(metres))]) @ fit.rotation
        return self._proportions.misfit((beside + self._shift)[:, :2])


def steady_landmarks(basis: LandmarkBasis) -> Indices:
    """Which of the L landmarks expressions move least."""
    moved = np.sqrt((basis.directions**2).sum((0, 2)))
    return np.flatnonzero(moved <= np.quantile(moved, STEADY))


def calibration_misfit(head: HeadModel, one: Calibration, other: Calibration) -> Float32:
    """(N, 2) float32 mm: the same between two calibrations of ``head``."""
    basis = landmark_basis(head)
    steady = steady_landmarks(basis)
    points = [basis.with_identity(each.shape, each.offsets.astype(np.float64)).base[steady] for each in (one, other)]
    return Proportions(points[0]).misfit((points[1] - points[0])[:, :2])


def shape_misfit(head: HeadModel, shape: Float32, other: Float32) -> Float32:
    """(N, 2) float32 mm: the same between two identity codes (S,), over the vertices of the face."""
    group = head.vertex_group()
    face = np.flatnonzero(np.asarray(group == SKIN) & (head.template[:, 2] > 0.0))
    face = face[:: max(1, len(face) // FACE_VERTICES)]
    points = head.template[face].astype(np.float64)
    moved = np.einsum("s,svx->vx", (other - shape).astype(np.float64), head.shape_dirs[:, face])
    return Proportions(points).misfit(moved[:, :2])

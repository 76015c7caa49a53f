"""Residuals: deviations of a face from the proportions of a calibrated subject, by which subjects are distinguished.

After the head fit, the landmarks of another person deviate from those of the calibrated subject in a systematic way.
The half of the landmarks that expressions move least is compared.  The affine part of the deviation is removed, because
errors of pitch, depth and focal length look like an affine map; so the residual does not depend on the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from insta_runtime.head import HeadModel
from insta_runtime.head.model import SKIN
from insta_runtime.types import Float32, Float64

from .calibration import Calibration
from .head_fit import HeadFit, Pinhole
from .landmark_basis import Indices, LandmarkBasis, landmark_basis

STABLE_FRACTION = 0.5
"""Fraction of the landmarks that are compared: those that expressions move least."""
FACE_VERTICES = 400
"""Approximate number of face vertices by which two identity codes are compared."""


@dataclass(frozen=True)
class KnownSubject:
    """A subject who was tracked before: identity code ``shape`` (S,), and calibration (None if there is none)."""

    shape: Float32
    calibration: Calibration | None


class AffineResidual:
    """Removes from deviations of N points of a face the part that is an affine function of the points' positions.

    Args:
        points: (N, 3) positions of the points on the head at rest, in metres.
    """

    def __init__(self, points: Float64) -> None:
        centred = points - points.mean(0)
        self._affine, _ = np.linalg.qr(np.column_stack([np.ones(len(points)), centred]))  # (N, 4)

    def residual(self, offset: Float64) -> Float32:
        """Non-affine part (N, 2), in mm, of deviations ``offset`` (N, 2), in metres along the head's x and y axes."""
        left = offset - self._affine @ (self._affine.T @ offset)
        return (1000.0 * left).astype(np.float32)


class LandmarkResidual:
    """Computes how fitted faces deviate from the proportions of a calibrated subject.

    Args:
        basis: landmark basis of the calibrated subject, with which the faces are fitted.
        shift: (L, 3) landmark offsets of ``basis`` minus those stored for a known subject, in metres, if faces are to
            be compared with the latter; None: zero.
    """

    def __init__(self, basis: LandmarkBasis, shift: Float64 | None = None) -> None:
        self._stable = stable_landmarks(basis)
        self._affine_residual = AffineResidual(basis.base[self._stable])
        self._shift = 0.0 if shift is None else shift[self._stable]

    def residual(self, fit: HeadFit, camera: Pinhole) -> Float32:
        """Non-affine deviation (N, 2) float32, in mm, of the N most stable landmarks from the calibrated subject.

        The columns are along the x and y axes of the head.
        """
        metres = fit.residual[self._stable] * (fit.translation[2] / camera.focal)
        beside = np.column_stack([metres, np.zeros(len(metres))]) @ fit.rotation
        return self._affine_residual.residual((beside + self._shift)[:, :2])


def stable_landmarks(basis: LandmarkBasis) -> Indices:
    """Indices (N,), in 0 ... L - 1, of the half of the L landmarks of ``basis`` that expressions move least."""
    moved = np.sqrt((basis.directions**2).sum((0, 2)))
    return np.flatnonzero(moved <= np.quantile(moved, STABLE_FRACTION))


def calibration_residual(head: HeadModel, one: Calibration, other: Calibration) -> Float32:
    """Non-affine deviation (N, 2) float32, in mm, of the stable landmarks of ``other`` from those of ``one``."""
    basis = landmark_basis(head)
    stable = stable_landmarks(basis)
    points = [basis.with_identity(each.shape, each.offsets.astype(np.float64)).base[stable] for each in (one, other)]
    return AffineResidual(points[0]).residual((points[1] - points[0])[:, :2])


def shape_residual(head: HeadModel, shape: Float32, other: Float32) -> Float32:
    """Non-affine deviation (N, 2) float32, in mm, of N face vertices of identity ``other`` from ``shape``.

    Both are identity codes (S,) of ``head``; the columns are along the x and y axes of the head.
    """
    group = head.vertex_group()
    face = np.flatnonzero(np.asarray(group == SKIN) & (head.template[:, 2] > 0.0))
    face = face[:: max(1, len(face) // FACE_VERTICES)]
    points = head.template[face].astype(np.float64)
    moved = np.einsum("s,svx->vx", (other - shape).astype(np.float64), head.shape_dirs[:, face])
    return AffineResidual(points).residual(moved[:, :2])

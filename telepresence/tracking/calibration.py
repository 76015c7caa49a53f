"""Calibration of a subject: identity code and landmark offsets, estimated from a second or two of frames.

Joint Gauss-Newton over a few varied keyframes: one identity code (shape coefficients of the head model) shared by all,
and a pose and face units of each keyframe, which are eliminated by their Schur complement.  Landmarks determine an
identity only weakly, so the code is kept close to the mean by its prior; the remaining deviation of the landmarks is
stored as an offset of each landmark.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, Float64

from .face_mesh import LANDMARKS
from .head_fit import POSE, HeadFit, HeadFitter, NormalEquations, Pinhole
from .landmark_basis import JAW_WEIGHT, LandmarkBasis, landmark_basis
from .landmarks import FaceLandmarks

FOCAL = 1.2
"""Assumed focal length, as a multiple of the frame's longest side; landmarks of a face hardly determine it."""
KEYFRAMES = 20
"""Maximum number of frames from which a subject is calibrated."""
IDENTITY_WEIGHT = 50.0 / 4
"""Weight, per keyframe, of the standard normal prior of each component of the identity code."""
IDENTITY_ROUNDS = 6
"""Number of Gauss-Newton iterations that estimate the identity code."""
OFFSET_SD = 0.002
"""Standard deviation, in metres, of the zero-mean Gaussian prior of landmark offsets."""
OFFSET_ROUNDS = 3
"""Number of iterations that estimate the landmark offsets."""
FORMAT_VERSION = 1
"""Version of the JSON representation of a calibration."""


@dataclass(frozen=True)
class Calibration:
    """Tracking constants of one subject in front of one camera: focal length, identity, landmark offsets, gaze bias.

    Attributes:
        width, height: size of the camera's frames, px.
        focal: focal length in px; the principal point is the centre of the frame.
        shape: (S,) float32 identity code (shape coefficients) for the head model ``head_sha256``.
        offsets: (L, 3) float32, displacement of each fitted landmark from its place on the head model, head space, m.
        gaze: (2, 2) float32, gaze bias in radians, measured while the subject looks into the camera; rows: left, right
            eye; columns: yaw, pitch.
        error: median reprojection error of a head fit, in px of an image whose longest side is 512.
        head_sha256: SHA-256 of the file of the head model.
    """

    width: int
    height: int
    focal: float
    shape: Float32
    offsets: Float32
    gaze: Float32
    error: float
    head_sha256: str

    @property
    def camera(self) -> Pinhole:
        """Pinhole camera of the whole, uncropped frames."""
        return Pinhole.of_frame(self.width, self.height, self.focal)

    def fitter(self, head: HeadModel) -> HeadFitter:
        """Head fitter for this subject and camera.  Raises UserError if the calibration is of another head model."""
        if head.sha256 != self.head_sha256 or len(self.shape) != len(head.shape_dirs):
            raise UserError(f"the calibration belongs to another head model than {head.name}: recalibrate the subject")
        basis = landmark_basis(head)
        if self.offsets.shape != basis.base.shape:
            raise UserError(f"the calibration does not match the landmarks of {head.name}: recalibrate the subject")
        return HeadFitter(basis.with_identity(self.shape, self.offsets.astype(np.float64)), self.camera)

    def to_json(self) -> str:
        """Serialise the calibration to one line of JSON."""
        return json.dumps(
            {
                "version": FORMAT_VERSION,
                "size": [self.width, self.height],
                "focal": self.focal,
                "error": self.error,
                "head_sha256": self.head_sha256,
                "shape": _rounded(self.shape),
                "offsets": _rounded(self.offsets),
                "gaze": _rounded(self.gaze),
            }
        )

    @staticmethod
    def from_json(text: str) -> Calibration:
        """Parse a calibration written by `to_json`.  Raises UserError if the text is not a valid calibration."""
        try:
            values = json.loads(text)
            if values["version"] != FORMAT_VERSION:
                raise ValueError(f"version {values['version']}")
            width, height = (int(value) for value in values["size"])
            focal, error = float(values["focal"]), float(values["error"])
            shape, offsets, gaze = (_numbers(values[name]) for name in ("shape", "offsets", "gaze"))
            valid = (
                0 < width <= 1 << 14
                and 0 < height <= 1 << 14
                and 0 < focal < 1e6
                and 0 < error < 1e3
                and shape.ndim == 1
                and shape.size <= 1024
                and offsets.ndim == 2
                and offsets.shape[1] == 3
                and len(offsets) <= LANDMARKS
                and gaze.shape == (2, 2)
            )
            if not valid:
                raise ValueError("sizes out of range")
            return Calibration(width, height, focal, shape, offsets, gaze, error, str(values["head_sha256"])[:64])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            reason = (str(error).splitlines() or ["?"])[0][:80]
            raise UserError(f"the stored calibration is damaged ({reason}): recalibrate the subject") from None


def calibrate(
    head: HeadModel,
    faces: Sequence[FaceLandmarks],
    width: int,
    height: int,
    focal: float | None = None,
    known: Float32 | None = None,
) -> Calibration:
    """Estimate identity code and landmark offsets of one subject from landmarks.  The gaze bias is set to zero.

    Accuracy grows with the variety of poses in ``faces``; one face is enough for a rough calibration.

    Args:
        head: the head model; UserError is raised if it has no landmark embedding.
        faces: landmarks of the subject in at least one frame.
        width, height: size of the frames, px.
        focal: focal length in px; None: `FOCAL` times the longest side of the frame.
        known: (S,) identity code if it is already known from another camera; it is kept.
    """
    assert faces
    basis = landmark_basis(head)
    focal = focal if focal is not None else FOCAL * max(width, height)
    camera = Pinhole.of_frame(width, height, focal)
    chosen = [faces[index] for index in keyframes(faces, basis)]
    shape = np.zeros(len(head.shape_dirs)) if known is None else known.astype(np.float64)
    fitter = HeadFitter(basis.with_identity(shape), camera)
    fits = [fitter.fit(face, None) for face in chosen]
    for _ in range(IDENTITY_ROUNDS if known is None else 0):
        shape = shape + _identity_step(fitter, fits, chosen, shape)
        fitter = HeadFitter(basis.with_identity(shape), camera)
        fits = [_refit(fitter, fit, face) for fit, face in zip(fits, chosen, strict=True)]
    person = fitter.basis
    offsets = np.zeros_like(person.base)
    for _ in range(OFFSET_ROUNDS):
        offsets = offsets + _offset_step(fitter, fits, chosen, offsets)
        fitter = HeadFitter(basis.with_identity(shape, offsets), camera)
        fits = [_refit(fitter, fit, face) for fit, face in zip(fits, chosen, strict=True)]
    return Calibration(
        width,
        height,
        focal,
        shape.astype(np.float32),
        offsets.astype(np.float32),
        np.zeros((2, 2), np.float32),
        float(np.median([fit.error for fit in fits])),
        head.sha256,
    )


def keyframes(faces: Sequence[FaceLandmarks], basis: LandmarkBasis, count: int = KEYFRAMES) -> list[int]:
    """Indices of up to ``count`` ``faces`` that differ most: farthest-point sampling of centred, scaled landmarks."""
    points = np.stack([face.points[basis.indices, :2] for face in faces]).astype(np.float64)
    points -= points.mean(1, keepdims=True)
    points /= np.sqrt((points**2).mean((1, 2), keepdims=True))
    points = points.reshape(len(faces), -1)
    first = int(np.argmin(((points - np.median(points, axis=0)) ** 2).sum(1)))
    chosen, distance = [first], ((points - points[first]) ** 2).sum(1)
    while len(chosen) < min(count, len(faces)):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
    return chosen


def _refit(fitter: HeadFitter, fit: HeadFit, face: FaceLandmarks) -> HeadFit:
    """Run two more iterations from ``fit``, without temporal weights: keyframes have no previous frame."""
    return fitter.fit(face, fit, interval=np.inf)


def _identity_step(
    fitter: HeadFitter, fits: Sequence[HeadFit], faces: Sequence[FaceLandmarks], shape: Float64
) -> Float64:
    """Gauss-Newton step of the identity code (S,), with the variables of each keyframe eliminated."""
    weight = IDENTITY_WEIGHT * len(faces)
    matrix = weight * np.eye(len(shape))
    vector = -weight * shape
    priors = fitter.basis.priors
    for fit, face in zip(fits, faces, strict=True):
        residual, trust, own = fitter.residuals(fit, face)
        shared = _by_shape(fitter, fit, own)
        both = NormalEquations.of(residual, trust, np.concatenate([own, shared], axis=2))
        both.add_prior(POSE, priors.weight, priors.mean(face.scores) - fit.units)
        mine = own.shape[2]
        if fitter.basis.has_jaw:
            both.add_prior(mine - 3, JAW_WEIGHT, np.zeros(3))
        at_bound = np.zeros(mine, bool)
        at_bound[POSE : POSE + len(fit.units)] = (fit.units <= priors.low) | (fit.units >= priors.high)
        free = np.flatnonzero(~at_bound)
        block = both.matrix[np.ix_(free, free)]
        cross = both.matrix[free, mine:]
        solved = np.linalg.solve(block, np.column_stack([cross, both.vector[free]]))
        matrix += both.matrix[mine:, mine:] - cross.T @ solved[:, :-1]
        vector += both.vector[mine:] - cross.T @ solved[:, -1]
    return np.linalg.solve(matrix, vector).astype(np.float64)


def _by_shape(fitter: HeadFitter, fit: HeadFit, own: Float64) -> Float64:
    """Derivative (2, L, S) of the projections by the identity code; ``own`` is their Jacobian by pose and units."""
    in_head = own[:, :, 3:6] @ fit.rotation  # (2, L, 3)
    return np.einsum("alk,kls->als", in_head, fitter.basis.by_shape(fit.jaw))


def _offset_step(
    fitter: HeadFitter, fits: Sequence[HeadFit], faces: Sequence[FaceLandmarks], offsets: Float64
) -> Float64:
    """Least-squares step (L, 3) of the landmark offsets for fixed poses, with a Gaussian prior at zero."""
    matrix = np.tile(np.eye(3) / OFFSET_SD**2, (len(offsets), 1, 1))
    vector = -offsets / OFFSET_SD**2
    for fit, face in zip(fits, faces, strict=True):
        residual, trust, own = fitter.residuals(fit, face)
        in_head = own[:, :, 3:6] @ fit.rotation
        # The importance of a landmark for the pose says nothing about the certainty of its position.
        trust = trust / fitter.basis.weights
        matrix += np.einsum("l,alk,alm->lkm", trust, in_head, in_head)
        vector += np.einsum("l,alk,al->lk", trust, in_head, residual)
    return np.linalg.solve(matrix, vector[..., None])[..., 0].astype(np.float64)


def _rounded(values: Float32) -> Any:
    return np.round(values.astype(np.float64), 6).tolist()


def _numbers(values: Any) -> Float32:
    array: NDArray[np.float64] = np.array(values, dtype=np.float64)
    if not (np.isfinite(array).all() and (np.abs(array) < 1e3).all()):
        raise ValueError("numbers out of range")
    return array.astype(np.float32)

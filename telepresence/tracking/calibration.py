"""Per-person calibration: who is before the camera, found once from a second or two of pictures.

Joint Gauss-Newton over a few varied keyframes: one identity code for all, a pose and face units for each, which are
eliminated by their Schur complement.  Landmarks determine an identity only weakly, so it is held close to the mean;
what the landmarks of this person have of their own goes into a displacement of each landmark.
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

from .basis import JAW_WEIGHT, LandmarkBasis, landmark_basis
from .fit import POSE, HeadFit, HeadFitter, NormalEquations, Pinhole
from .landmarks import LANDMARKS, FaceLandmarks

FOCAL = 1.2  # x the longest side of the picture: focal length is practically unobservable from a face
KEYFRAMES = 20
IDENTITY_WEIGHT = 50.0 / 4  # a keyframe, for each component (unit variance)
IDENTITY_ROUNDS = 6
OFFSET_SD = 0.002  # m
OFFSET_ROUNDS = 3
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """What is constant about one person before one camera.

    Attributes:
        width, height: of the pictures it belongs to, px.
        focal: px; the principal point is the middle of the picture.
        shape: (S,) float32 identity code of the head model whose file hash is ``head_sha256``.
        offsets: (L, 3) float32 m, displacement of each fitted landmark on the head.
        gaze: (2, 2) float32 rad, yaw and pitch that the left, right eye shows when the person looks at the camera.
        error: usual error of a fit, px of a picture whose longest side is 512.
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
        return Pinhole.of_picture(self.width, self.height, self.focal)

    def fitter(self, head: HeadModel) -> HeadFitter:
        """The fitter for this person.  Raises UserError if the calibration belongs to another head model."""
        if head.sha256 != self.head_sha256 or len(self.shape) != len(head.shape_dirs):
            raise UserError(f"the calibration belongs to another head model than {head.name}: calibrate again")
        basis = landmark_basis(head)
        if self.offsets.shape != basis.base.shape:
            raise UserError(f"the calibration does not fit the landmarks of {head.name}: calibrate again")
        return HeadFitter(basis.with_identity(self.shape, self.offsets.astype(np.float64)), self.camera)

    def to_json(self) -> str:
        """As one line of JSON."""
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
        """The calibration that ``to_json`` wrote.  Raises UserError if it is anything else."""
        try:
            values = json.loads(text)
            if values["version"] != FORMAT_VERSION:
                raise ValueError(f"version {values['version']}")
            width, height = (int(value) for value in values["size"])
            focal, error = float(values["focal"]), float(values["error"])
            shape, offsets, gaze = (_numbers(values[name]) for name in ("shape", "offsets", "gaze"))
            sound = (
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
            if not sound:
                raise ValueError("sizes out of range")
            return Calibration(width, height, focal, shape, offsets, gaze, error, str(values["head_sha256"])[:64])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            reason = (str(error).splitlines() or ["?"])[0][:80]
            raise UserError(f"the stored calibration is damaged ({reason}): calibrate again") from None


def calibrate(
    head: HeadModel,
    faces: Sequence[FaceLandmarks],
    width: int,
    height: int,
    focal: float | None = None,
    known: Float32 | None = None,
) -> Calibration:
    """Calibrate from the faces found in pictures of ``width`` x ``height`` px.  Gaze is left at zero.

    The more the face moves and the more of it is seen, the better; one picture is enough to get something.
    ``known`` (S,) is the identity code of a person who is known already, from another camera; it is kept.
    """
    assert faces
    basis = landmark_basis(head)
    focal = focal if focal is not None else FOCAL * max(width, height)
    camera = Pinhole.of_picture(width, height, focal)
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
    """Up to ``count`` indices of faces that differ most: farthest-point sampling of the centred, scaled landmarks."""
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
    """Two more iterations from where the keyframe stands; keyframes have no past, so nothing holds its units."""
    return fitter.fit(face, fit, interval=np.inf)


def _identity_step(
    fitter: HeadFitter, fits: Sequence[HeadFit], faces: Sequence[FaceLandmarks], shape: Float64
) -> Float64:
    """The Gauss-Newton step of the identity code (S,) after elimination of every keyframe's own variables."""
    weight = IDENTITY_WEIGHT * len(faces)
    matrix = weight * np.eye(len(shape))
    vector = -weight * shape
    priors = fitter.basis.priors
    for fit, face in zip(fits, faces, strict=True):
        residual, trust, own = fitter.residuals(fit, face)
        shared = _by_shape(fitter, fit, own)
        both = NormalEquations.of(residual, trust, np.concatenate([own, shared], axis=2))
        both.pull(POSE, priors.weight, priors.mean(face.scores) - fit.units)
        mine = own.shape[2]
        if fitter.basis.has_jaw:
            both.pull(mine - 3, JAW_WEIGHT, np.zeros(3))
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
    """(2, L, S): how the projections move with the identity code, from the gradients in ``own``'s translation."""
    in_head = own[:, :, 3:6] @ fit.rotation  # (2, L, 3)
    return np.einsum("alk,kls->als", in_head, fitter.basis.by_shape(fit.jaw))


def _offset_step(
    fitter: HeadFitter, fits: Sequence[HeadFit], faces: Sequence[FaceLandmarks], offsets: Float64
) -> Float64:
    """(L, 3): each landmark's own least-squares displacement given the poses, held near zero by a Gaussian."""
    matrix = np.tile(np.eye(3) / OFFSET_SD**2, (len(offsets), 1, 1))
    vector = -offsets / OFFSET_SD**2
    for fit, face in zip(fits, faces, strict=True):
        residual, trust, own = fitter.residuals(fit, face)
        in_head = own[:, :, 3:6] @ fit.rotation
        trust = trust / fitter.basis.weights  # what is important to the pose is not for that surer of its place
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

"""Head tracking from frame to frame: landmarks give the expression, tracked texture refines the head pose.

While tracking, `HeadTracker` learns keyframes of the head's texture (`texture_map.TextureMap`) and the offsets of this
subject's landmarks on the head, given poses that the texture determined.  The live tracker and the tracking of
recordings both use it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from insta_runtime.head import HeadModel
from insta_runtime.types import Bytes, Float64

from .calibration import OFFSET_SD, Calibration
from .crop import Crop
from .head_fit import REFERENCE_INTERVAL, HeadFit, HeadFitter, Pinhole
from .health import TrackingHealth
from .landmark_basis import LandmarkBasis, landmark_basis
from .landmarks import FaceLandmarks
from .matting import PersonMatting
from .texture_map import TextureMap, TexturePatch

MAX_INTERVAL = 0.25
"""Interval between two frames, in seconds, from which a fit no longer starts from the previous one."""
MAX_SAMPLES = 400
"""Maximum number of frames from which the landmark offsets are learned."""
SAMPLES_PER_UPDATE = 25
"""Number of frames between two updates of the landmark offsets."""
FORGETTING = 0.99
"""Forgetting factor per frame of the recursive least squares for the landmark offsets."""


class HeadTracker:
    """Tracks the head pose and expression of one subject from frame to frame, with landmarks and texture.

    Args:
        head: the head model.
        calibration: calibration of the subject; UserError is raised if it is of another head model.
        matting: matting of the same subject, which masks the texture of keyframes; it must be closed by the caller.
        face_size: typical size of the face, px (`FaceLandmarks.face_size`).

    Attributes:
        fit_seconds: processor time of the last head fit to an image, in seconds.
    """

    def __init__(self, head: HeadModel, calibration: Calibration, matting: PersonMatting, face_size: float) -> None:
        self._calibration = calibration
        self._matting = matting
        self._identity_basis = landmark_basis(head).with_identity(calibration.shape)
        self._fitter = calibration.fitter(head)
        self._texture = TextureMap(head, calibration.shape, self._fitter.camera, face_size)
        self._health = TrackingHealth(self._fitter.camera, calibration.error)
        self._calibrated = self._fitter
        self._offsets = LandmarkOffsets(self._fitter.basis, calibration.offsets.astype(np.float64))
        self._before: HeadFit | None = None
        self._sample: _TextureSample | None = None
        self.fit_seconds = 0.0

    @property
    def camera(self) -> Pinhole:
        """Pinhole camera of the whole, uncropped frames."""
        return self._fitter.camera

    @property
    def basis(self) -> LandmarkBasis:
        """Landmark basis of the subject, with the offsets learned so far."""
        return self._fitter.basis

    @property
    def calibration(self) -> Calibration:
        """Calibration of the subject, with the landmark offsets learned so far."""
        return replace(self._calibration, offsets=self._offsets.values.astype(np.float32))

    @property
    def lost(self) -> bool:
        """Whether the head is lost: no face, or an implausible fit, in one of the last few frames."""
        return self._health.lost

    def restart(self) -> None:
        """Forget the last fit, because the next frame does not follow it in time; texture and offsets are kept."""
        self._before = None
        self._health = TrackingHealth(self.camera, self._health.usual_error)

    def project(self, fit: HeadFit) -> Float64:
        """Project the landmarks of the fitted head into the frame: (L, 2) px."""
        return self._fitter.project(fit)

    def update(self, rgb: Bytes | None, face: FaceLandmarks | None, interval: float) -> tuple[HeadFit | None, bool]:
        """Fit the head to the next frame; returns the fit, and whether it is accepted as plausible.

        Args:
            rgb: (H, W, 3) uint8 frame; None: only landmarks were received, and texture is neither used nor learned.
            face: landmarks in that frame; None: no face was found, and the returned fit is None.
            interval: seconds since the last frame.
        """
        self._sample = None
        before = self._before if not self._health.lost and 0 < interval < MAX_INTERVAL else None
        interval = interval or REFERENCE_INTERVAL
        if face is None:
            fit = None
        elif rgb is None:
            fit = self._fitter.fit(face, before, interval)
        else:
            fit = self._fit(rgb, face, before, interval)
        good = self._health.update(fit)
        self._before = fit
        return fit, good

    def learn(self) -> None:
        """Learn texture and landmark offsets from the frame last passed to `update`.

        Separate from `update`, because adding a keyframe takes several times as long as the fit, and the head state
        can be displayed before.  Does nothing if that frame had no image or no face, or if the head was lost before it.
        """
        sample, self._sample = self._sample, None
        if sample is None:
            return
        fitter, texture, face, fit = self._fitter, self._texture, sample.face, sample.fit
        if texture.needs_keyframe(fit):
            landmark_fit = self._calibrated.fit(face, None)
            matte = self._matting.body_matte(sample.rgb, face, sample.window)
            information = fitter.pose_information(landmark_fit, face)
            texture.add_keyframe(sample.patch, sample.window, matte, face, fit, landmark_fit, information)
        if sample.matched and self._offsets.learn(fitter, fit, face):
            self._fitter = HeadFitter(self._identity_basis.moved(self._offsets.values), fitter.camera)

    def _fit(self, rgb: Bytes, face: FaceLandmarks, before: HeadFit | None, interval: float) -> HeadFit:
        fitter, texture = self._fitter, self._texture
        start = fitter.fit(face, None) if before is None else fitter.propagate(before, face)
        window = texture.window(face)
        patch = texture.extract(rgb, window)
        matches = texture.match(patch, window, start)
        began = time.thread_time()
        fit = fitter.fit(face, before, interval, matches, start)
        self.fit_seconds = time.thread_time() - began
        if not self._health.lost:
            self._sample = _TextureSample(rgb, face, fit, window, patch, matches is not None)
        return fit


@dataclass(frozen=True)
class _TextureSample:
    """Last fitted frame with its texture window, stored for `HeadTracker.learn`."""

    rgb: Bytes
    face: FaceLandmarks
    fit: HeadFit
    window: Crop
    patch: TexturePatch
    matched: bool  # whether texture keyframes contributed to the fit


class LandmarkOffsets:
    """Estimator of landmark offsets, the displacements of landmarks on the head: recursive least squares with a prior.

    Changes of the offsets contain no rigid motion and no scaling, because those belong to the pose and the identity.

    Attributes:
        values: (L, 3) current landmark offsets in head space, in metres; initially those of the calibration.
    """

    def __init__(self, basis: LandmarkBasis, values: Float64) -> None:
        self.values = values
        self._first = values
        self._matrix = np.zeros((len(values), 3, 3))
        self._vector = np.zeros((len(values), 3))
        self._samples = 0
        points = basis.base - basis.base.mean(0)
        moves = [np.tile(axis, (len(points), 1)) for axis in np.eye(3)]
        moves += [np.cross(axis, points) for axis in np.eye(3)] + [points]
        self._rigid = np.stack([move.reshape(-1) for move in moves], 1)  # (3 L, 7)
        self._weights = np.repeat(basis.weights, 3)

    def learn(self, fitter: HeadFitter, fit: HeadFit, face: FaceLandmarks) -> bool:
        """Add one fitted frame; returns True if ``values`` were updated: every `SAMPLES_PER_UPDATE` frames."""
        if self._samples >= MAX_SAMPLES:
            return False
        residual, trust, jacobian = fitter.residuals(fit, face, pose_only=True)
        in_head = jacobian[:, :, 3:6] @ fit.rotation
        wanted = residual + np.einsum("alk,lk->al", in_head, self.values)
        trust = trust / fitter.basis.weights
        self._matrix = FORGETTING * self._matrix + np.einsum("l,alk,alm->lkm", trust, in_head, in_head)
        self._vector = FORGETTING * self._vector + np.einsum("l,alk,al->lk", trust, in_head, wanted)
        self._samples += 1
        if self._samples % SAMPLES_PER_UPDATE:
            return False
        prior = np.eye(3) / OFFSET_SD**2
        values = np.linalg.solve(self._matrix + prior, self._vector[..., None])[..., 0]
        change = (values - self._first).reshape(-1)
        weighted = self._rigid.T * self._weights
        change -= self._rigid @ np.linalg.solve(weighted @ self._rigid, weighted @ change)
        self.values = self._first + change.reshape(-1, 3)
        return True

"""Follows one person's head from picture to picture: landmarks say what the face does, texture how the head turned.

While it follows it learns: keyframes of the texture (`texture.TextureMap`), and where the landmarks of this person
lie on the head, now that the pose is known from elsewhere.  The live tracker and the tracking of recordings use it
alike.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from insta_runtime.head import HeadModel
from insta_runtime.types import Bytes, Float64

from .basis import LandmarkBasis, landmark_basis
from .calibration import OFFSET_SD, Calibration
from .crop import Crop
from .fit import REFERENCE_INTERVAL, HeadFit, HeadFitter, Pinhole
from .health import Health
from .landmarks import FaceLandmarks
from .matting import Matter
from .texture import Picture, TextureMap

MAX_INTERVAL = 0.25  # s without a picture after which the last fit is no start any more
MAX_SAMPLES = 400  # pictures that say where the landmarks lie
SAMPLES_EACH = 25  # of them between two looks at what they say
MEMORY = 0.99  # what a sample is worth after the next


class HeadFollower:
    """Follows the head of one person.  Close it when done.

    Args:
        head: the head model.
        calibration: of the person.
        matter: cuts out this person.
        face_size: usual size of the face, px.

    Attributes:
        fit_seconds: processor time of the last head fit.
    """

    def __init__(self, head: HeadModel, calibration: Calibration, matter: Matter, face_size: float) -> None:
        self._calibration = calibration
        self._matter = matter
        self._person = landmark_basis(head).with_identity(calibration.shape)
        self._fitter = calibration.fitter(head)
        self._texture = TextureMap(head, calibration.shape, self._fitter.camera, face_size)
        self._health = Health(self._fitter.camera, calibration.error)
        self._calibrated = self._fitter
        self._offsets = LandmarkOffsets(self._fitter.basis, calibration.offsets.astype(np.float64))
        self._before: HeadFit | None = None
        self._lesson: _Lesson | None = None
        self.fit_seconds = 0.0

    @property
    def camera(self) -> Pinhole:
        return self._fitter.camera

    @property
    def basis(self) -> LandmarkBasis:
        """The person's landmarks, as far as they are known by now."""
        return self._fitter.basis

    @property
    def calibration(self) -> Calibration:
        """What is known of the person by now."""
        return replace(self._calibration, offsets=self._offsets.values.astype(np.float32))

    @property
    def lost(self) -> bool:
        return self._health.lost

    def restart(self) -> None:
        """The next picture does not follow the last one: what was learned stays, where the head was does not."""
        self._before = None
        self._health = Health(self.camera, self._health.usual_error)

    def project(self, fit: HeadFit) -> Float64:
        """(L, 2) px: where the fitted head's landmarks lie in the picture."""
        return self._fitter.project(fit)

    def follow(self, rgb: Bytes | None, face: FaceLandmarks | None, interval: float) -> tuple[HeadFit | None, bool]:
        """The head in ``rgb`` (H, W, 3), ``interval`` seconds after the last picture, and whether it is to be believed.

        ``face``: the landmarks in that picture; without them there is no fit.  Without the picture itself (None) they
        alone say how the head turned, and there is nothing to `learn`.
        """
        self._lesson = None
        before = self._before if not self._health.lost and 0 < interval < MAX_INTERVAL else None
        interval = interval or REFERENCE_INTERVAL
        if face is None:
            fit = None
        elif rgb is None:
            fit = self._fitter.fit(face, before, interval)
        else:
            fit = self._fit(rgb, face, before, interval)
        good = self._health.judge(fit)
        self._before = fit
        return fit, good

    def learn(self) -> None:
        """Learn from the picture that was followed last.

        A keyframe takes several times as long as following did: whoever waits for the head wants it before.
        """
        lesson, self._lesson = self._lesson, None
        if lesson is None:
            return
        fitter, texture, face, fit = self._fitter, self._texture, lesson.face, lesson.fit
        if texture.is_novel(fit):
            alone = self._calibrated.fit(face, None)
            matte = self._matter.person(lesson.rgb, face, lesson.window)
            texture.add(lesson.picture, lesson.window, matte, face, fit, alone, fitter.pose_information(alone, face))
        if lesson.sighted and self._offsets.learn(fitter, fit, face):
            self._fitter = HeadFitter(self._person.moved(self._offsets.values), fitter.camera)

    def _fit(self, rgb: Bytes, face: FaceLandmarks, before: HeadFit | None, interval: float) -> HeadFit:
        fitter, texture = self._fitter, self._texture
        start = fitter.fit(face, None) if before is None else fitter.follow(before, face)
        window = texture.window(face)
        picture = texture.look(rgb, window)
        sightings = texture.find(picture, window, start)
        began = time.thread_time()
        fit = fitter.fit(face, before, interval, sightings, start)
        self.fit_seconds = time.thread_time() - began
        if not self._health.lost:
            self._lesson = _Lesson(rgb, face, fit, window, picture, sightings is not None)
        return fit


@dataclass(frozen=True)
class _Lesson:
    """A picture that was followed: what `HeadFollower.learn` needs of it."""

    rgb: Bytes
    face: FaceLandmarks
    fit: HeadFit
    window: Crop
    picture: Picture
    sighted: bool  # whether keyframes said where the head is


class LandmarkOffsets:
    """The displacement of each landmark (L, 3), by recursive least squares, held near zero by a Gaussian.

    All together they neither move, nor turn, nor grow: that would be another pose.
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
        """Take in one picture; whether ``values`` changed."""
        if self._samples >= MAX_SAMPLES:
            return False
        residual, trust, own = fitter.residuals(fit, face, pose_only=True)
        in_head = own[:, :, 3:6] @ fit.rotation
        wanted = residual + np.einsum("alk,lk->al", in_head, self.values)
        trust = trust / fitter.basis.weights
        self._matrix = MEMORY * self._matrix + np.einsum("l,alk,alm->lkm", trust, in_head, in_head)
        self._vector = MEMORY * self._vector + np.einsum("l,alk,al->lk", trust, in_head, wanted)
        self._samples += 1
        if self._samples % SAMPLES_EACH:
            return False
        prior = np.eye(3) / OFFSET_SD**2
        values = np.linalg.solve(self._matrix + prior, self._vector[..., None])[..., 0]
        change = (values - self._first).reshape(-1)
        weighted = self._rigid.T * self._weights
        change -= self._rigid @ np.linalg.solve(weighted @ self._rigid, weighted @ change)
        self.values = self._first + change.reshape(-1, 3)
        return True

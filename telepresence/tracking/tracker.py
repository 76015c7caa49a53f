"""The live tracker: pictures in, observations out.

It looks for a face, watches it for a second or two to learn who it is (`calibrate`), then fits every picture.
`TruthTracker` has the same interface for a source that knows its own states.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from insta_runtime.head import HeadModel
from insta_runtime.types import Bytes, Float32, Float64, HeadState, Observation
from telepresence.runtime.frames import CameraFrame, Glimpse, Pose, TrackedFrame

from .calibration import Calibration, calibrate
from .crop import Crop, CropPolicy, choose_crop
from .fit import HeadFit
from .follower import HeadFollower
from .landmarks import FaceLandmarker, FaceLandmarks
from .matting import Matter
from .proportions import Known, LandmarkProportions, calibration_misfit, shape_misfit
from .state import StateBuilder, trackable, with_gaze

log = logging.getLogger(__name__)

TrackerState = Literal["searching", "calibrating", "tracking", "lost"]

CALIBRATION_SECONDS = 1.5
CALIBRATION_FRAMES = 12  # at least
LEAST_FACE = 8.0  # px that landmarks from elsewhere must span
SAME_ASPECT = 0.02  # by which two pictures of the same camera may differ in width / height


def unheard(_pose: Pose) -> None:
    """Nobody waits for the pose."""


class Tracker(Protocol):
    """What the daemon knows of a tracker.  ``track`` never raises for a picture, whatever is in it.

    ``trusts``: whether whoever is seen is taken for the person that is tracked; while False, nothing is learned of
    their proportions and texture.  `recalibrate` forgets the person; somebody who is ``known`` is who is tracked next.
    `misfit_of` says how the person tracked lies beside somebody known, as `TrackedFrame.misfit` does; None where that
    cannot be said.
    """

    trusts: bool

    @property
    def state(self) -> TrackerState: ...

    @property
    def calibration(self) -> Calibration | None: ...

    @property
    def shape(self) -> Float32 | None: ...

    def track(self, frame: CameraFrame, told: Callable[[Pose], None] = unheard) -> TrackedFrame: ...

    def recalibrate(self, known: Known | None = None) -> None: ...

    def misfit_of(self, known: Known) -> Float32 | None: ...

    def close(self) -> None: ...


class FaceTracker:
    """Tracks one person, live, on one CPU core.  Use it from one thread; close it when done.

    Args:
        head: the head model; without a landmark embedding it gets one first (once, then cached: half a minute).
        size: side of the square pictures that come out, px.
        crop: how their window is chosen: ``auto``, ``head`` or ``center``.
        focal: focal length of the camera in px, if it is known.
        models: folder of MediaPipe's model files, if they are not to be downloaded.
        calibration: of an earlier call by the same person before the same camera.

    Raises UserError if the model files or mediapipe are not to be had.
    """

    def __init__(
        self,
        head: HeadModel,
        *,
        size: int = 512,
        crop: CropPolicy = "auto",
        focal: float | None = None,
        models: Path | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.head = trackable(head, models)
        self._size, self._policy, self._focal, self._models = size, crop, focal, models
        self.trusts = True
        self._landmarker = FaceLandmarker(models, live=True)
        self._person: _Person | None = None
        self._first: _Person | None = None  # as they look at first sight, until they are known
        self._stored = calibration
        self._known_shape: Float32 | None = None  # of somebody who has no calibration
        self._seen: list[tuple[int, FaceLandmarks]] = []
        self._shape = (0, 0)  # height, width of the pictures so far
        self._lost = False

    @property
    def state(self) -> TrackerState:
        """What it is doing: ``searching`` for a face, ``calibrating``, ``tracking``, or the face is ``lost``."""
        if self._person is None:
            return "calibrating" if self._seen else "searching"
        return "lost" if self._lost else "tracking"

    @property
    def calibration(self) -> Calibration | None:
        return self._person.follower.calibration if self._person is not None else None

    @property
    def shape(self) -> Float32 | None:
        """(S,) the identity code of the person, None until calibrated."""
        return self._person.shape if self._person is not None else None

    def track(self, frame: CameraFrame, told: Callable[[Pose], None] = unheard) -> TrackedFrame:
        """Track one picture; ``observation`` is None while searching, calibrating or lost.

        ``told`` hears the pose of a person who is known as soon as there is one: the matte takes as long again.
        While calibrating there is a ``glimpse``.  Where the picture is withheld its landmarks are tracked alone, if
        it is of the camera that is known: then there is a ``pose``, and nothing to learn from.
        """
        if frame.withheld:
            return self._track_withheld(frame, told)
        frame = self._as_before(frame)
        face = self._landmarker.detect(frame.rgb)
        if self._person is None:
            self._get_to_know(frame, face)
        if self._person is None:
            return self._at_first_sight(frame, face)
        tracked = self._person.track(frame, face, self.trusts, told)
        self._lost = tracked.observation is None
        return tracked

    def _as_before(self, frame: CameraFrame) -> CameraFrame:
        """``frame`` at the size of the pictures so far, if it is smaller: a network may be short of room.

        Pictures that are larger, or of another aspect, begin anew: it is another camera, or it was turned.
        """
        import cv2

        (height, width), (known_height, known_width) = frame.rgb.shape[:2], self._shape
        if (height, width) == self._shape:
            return frame
        if height <= known_height and width <= known_width and self._alike(height, width):
            rgb = cv2.resize(frame.rgb, (known_width, known_height), interpolation=cv2.INTER_LINEAR)
            return replace(frame, rgb=rgb.astype(np.uint8, copy=False))
        self._shape = (height, width)
        self.recalibrate(Known(self.shape, self.calibration) if self.shape is not None else None)
        return frame

    def _alike(self, height: int, width: int) -> bool:
        """Whether pictures of that size can be of the camera that is known."""
        return abs(width / height * self._shape[0] / self._shape[1] - 1.0) <= SAME_ASPECT

    def _track_withheld(self, frame: CameraFrame, told: Callable[[Pose], None]) -> TrackedFrame:
        height, width = frame.rgb.shape[:2]
        if self._shape == (0, 0):
            self._shape = (height, width)
        if not self._alike(height, width):
            return self._withheld(frame)
        face = None
        if frame.landmarks is not None:
            face = FaceLandmarks.found(frame.landmarks, self._shape[1], self._shape[0])
            left, top, right, bottom = face.box
            if min(right - left, bottom - top) < LEAST_FACE:
                face = None
        pose, misfit = None, None
        try:
            if self._person is None:
                self._get_to_know(frame, face)
            if self._person is not None:
                pose, misfit = self._person.follow(frame.t_capture_ns, face)
                self._lost = pose is None
        except (ArithmeticError, np.linalg.LinAlgError):
            log.warning("landmarks that are no face were left out")
        if pose is not None:
            told(pose)
        return self._withheld(frame, misfit, pose)

    def _withheld(self, frame: CameraFrame, misfit: Float32 | None = None, pose: Pose | None = None) -> TrackedFrame:
        black = np.zeros((self._size, self._size, 3), np.uint8)
        return TrackedFrame(frame.frame_id, frame.t_capture_ns, black, None, misfit, withheld=True, blind=pose)

    def recalibrate(self, known: Known | None = None) -> None:
        """Forget the person: the next second or two are for getting to know whoever is there.

        A person who is ``known``, with a calibration of this camera, is tracked at once.
        """
        if self._person is not None:
            self._person.close()
            self._stored = None
        self._forget_first()
        if known is not None:
            self._stored, self._known_shape = known.calibration, known.shape
        self._person = None
        self._seen.clear()
        self._lost = False

    def misfit_of(self, known: Known) -> Float32 | None:
        mine, theirs = self.calibration, known.calibration
        if mine is None or theirs is None or theirs.head_sha256 != mine.head_sha256:
            return None
        return calibration_misfit(self.head, theirs, mine)

    def close(self) -> None:
        if self._person is not None:
            self._person.close()
        self._forget_first()
        self._landmarker.close()

    def _at_first_sight(self, frame: CameraFrame, face: FaceLandmarks | None) -> TrackedFrame:
        """While nobody is known: the face as the head of whom the first picture suggests."""
        height, width = self._shape
        if self._first is None and face is not None:
            crop = choose_crop(self._policy, [face], width, height, self._size)
            guess = calibrate(self.head, [face], width, height, self._focal)
            self._first = _Person(self.head, guess, crop, face.face_size, self._models, None)
        if self._first is None:
            crop = choose_crop("center", [], width, height, self._size)
            return TrackedFrame(frame.frame_id, frame.t_capture_ns, crop.apply(frame.rgb), None)
        seen = self._first.track(frame, face, True, unheard)
        glimpse = Glimpse(seen.observation, self._first.shape) if seen.observation is not None else None
        return TrackedFrame(frame.frame_id, frame.t_capture_ns, seen.crop_rgb, None, glimpse=glimpse)

    def _forget_first(self) -> None:
        if self._first is not None:
            self._first.close()
            self._first = None

    def _get_to_know(self, frame: CameraFrame, face: FaceLandmarks | None) -> None:
        if face is None:
            return
        height, width = self._shape
        self._seen.append((frame.t_capture_ns, face))
        faces = [seen for _, seen in self._seen]
        stored, shift = self._stored, None
        if stored is not None and stored.head_sha256 != self.head.sha256:
            stored = None
        if stored is not None and (stored.width, stored.height) == (width, height):
            calibration = stored
        elif len(faces) >= CALIBRATION_FRAMES and frame.t_capture_ns - self._seen[0][0] >= CALIBRATION_SECONDS * 1e9:
            known = stored.shape if stored is not None else self._known_shape
            calibration = calibrate(self.head, faces, width, height, self._focal, known)
            calibration = with_gaze(self.head, calibration, faces)
            if known is not None:
                before = stored.offsets if stored is not None else 0.0
                shift = (calibration.offsets - before).astype(np.float64)
        else:
            return
        crop = choose_crop(self._policy, faces, width, height, self._size)
        size = float(np.median([face.face_size for face in faces]))
        self._person = _Person(self.head, calibration, crop, size, self._models, shift)
        self._forget_first()
        self._seen.clear()


class _Person:
    """A calibrated person being followed."""

    def __init__(
        self,
        head: HeadModel,
        calibration: Calibration,
        crop: Crop,
        face_size: float,
        models: Path | None,
        shift: Float64 | None,
    ) -> None:
        """``shift`` (L, 3) m: how far the landmarks of ``calibration`` lie from where the person's are known to."""
        self.shape = calibration.shape
        self.crop = crop
        self._matter = Matter(head, calibration.shape, models, live=True)
        self.follower = HeadFollower(head, calibration, self._matter, face_size)
        self._states = StateBuilder(head, calibration, self.follower.basis)
        self._proportions = LandmarkProportions(self.follower.basis, shift)
        self._camera = crop.camera(self.follower.camera)
        self._before_ns = 0

    def track(
        self, frame: CameraFrame, face: FaceLandmarks | None, trusts: bool, told: Callable[[Pose], None]
    ) -> TrackedFrame:
        interval = (frame.t_capture_ns - self._before_ns) / 1e9
        fit, good = self.follower.follow(frame.rgb, face, interval)
        self._before_ns = frame.t_capture_ns
        state = None
        if good and fit is not None and face is not None:
            state = self._states.build(fit, face, frame.t_capture_ns)
            told(Pose(state, self._camera))
        if trusts:
            self.follower.learn()
        crop_rgb = self.crop.apply(frame.rgb)
        observation = None
        if state is not None and face is not None:
            alpha, body = self._matter.mattes(frame.rgb, face, self.crop, self._camera, state)
            observation = Observation(frame.frame_id, crop_rgb, alpha, self._camera, state, body)
        return TrackedFrame(frame.frame_id, frame.t_capture_ns, crop_rgb, observation, self._misfit(fit))

    def follow(self, t_capture_ns: int, face: FaceLandmarks | None) -> tuple[Pose | None, Float32 | None]:
        """The pose of a face whose picture is withheld, if it is to be believed, and its misfit."""
        fit, good = self.follower.follow(None, face, (t_capture_ns - self._before_ns) / 1e9)
        self._before_ns = t_capture_ns
        pose = None
        if good and fit is not None and face is not None:
            pose = Pose(self._states.build(fit, face, t_capture_ns), self._camera)
        return pose, self._misfit(fit)

    def _misfit(self, fit: HeadFit | None) -> Float32 | None:
        return self._proportions.misfit(fit, self.follower.camera) if fit is not None else None

    def close(self) -> None:
        self._matter.close()


class TruthTracker:
    """Passes on what the source knows (`CameraFrame.truth`): states and mattes, no model files, no MediaPipe.

    Whoever is seen first, after a start or `recalibrate`, is the person tracked, as with `FaceTracker`: ``shape`` and
    ``calibration`` are theirs.
    """

    def __init__(
        self, head: HeadModel, shape: Float32, *, size: int = 512, calibration: Calibration | None = None
    ) -> None:
        self.head = head
        self._shape = shape
        self._size = size
        self._calibration = calibration
        self.trusts = True
        self._own = shape  # of whoever is before the source, where its pictures do not say
        self._given = False  # `recalibrate` said who is to be tracked
        self._compared: tuple[Float32, Float32] | None = None  # who was seen last, and their misfit
        self._state: TrackerState = "searching"

    @property
    def state(self) -> TrackerState:
        return self._state

    @property
    def calibration(self) -> Calibration | None:
        """As the source tells it; None of exact states."""
        return self._calibration

    @property
    def shape(self) -> Float32:
        return self._shape

    def track(self, frame: CameraFrame, told: Callable[[Pose], None] = unheard) -> TrackedFrame:
        """The whole picture at the size asked for, with the source's own state and matte."""
        size = (self._size, self._size)
        rgb = _resized(frame.rgb, size)
        truth = frame.truth
        if truth is None:
            self._state = "searching" if self._state == "searching" else "lost"
            return TrackedFrame(frame.frame_id, frame.t_capture_ns, rgb, None)
        seen = truth.shape if truth.shape is not None else self._own
        if self._state == "searching" and not self._given and seen is not self._shape:
            self._shape, self._calibration = seen, None
        if self._compared is None or self._compared[0] is not seen or self._state == "searching":
            self._compared = seen, shape_misfit(self.head, self._shape, seen)
        self._state = "tracking"
        alpha = _resized(truth.alpha, size)
        body = _resized(truth.body, size) if truth.body is not None else None
        state: HeadState = truth.state.at(frame.t_capture_ns)
        observation = Observation(frame.frame_id, rgb, alpha, truth.camera.scaled(*size), state, body)
        told(Pose(state, observation.camera))
        return TrackedFrame(frame.frame_id, frame.t_capture_ns, rgb, observation, self._compared[1])

    def recalibrate(self, known: Known | None = None) -> None:
        self._state = "searching"
        self._given = known is not None
        if known is not None:
            self._shape, self._calibration = known.shape, known.calibration

    def misfit_of(self, known: Known) -> Float32 | None:
        return shape_misfit(self.head, known.shape, self._shape) if len(known.shape) == len(self._shape) else None

    def close(self) -> None:
        self._state = "searching"


def _resized(picture: Bytes, size: tuple[int, int]) -> Bytes:
    from PIL import Image

    if picture.shape[:2] == size:
        return picture
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))

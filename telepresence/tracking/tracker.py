"""Live face tracking: converts camera frames to observations (crop, matte, head state, camera).

`FaceTracker` searches for a face, calibrates the subject for a second or two (`calibrate`), and then fits the head
model to every frame.  `GroundTruthTracker` (ground_truth_tracker.py) has the same interface for sources that supply
exact head states.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np

from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, Float64, Observation
from telepresence.runtime.frames import CameraFrame, ProvisionalObservation, TrackedFrame, TrackedState

from .calibration import Calibration, calibrate
from .crop import Crop, CropPolicy, choose_crop
from .face_models import FaceModels
from .head_fit import HeadFit
from .head_tracker import HeadTracker
from .landmark_residual import KnownSubject, LandmarkResidual, calibration_residual
from .landmarks import FaceLandmarker, FaceLandmarks
from .matting import PersonMatting
from .state_builder import StateBuilder, calibrate_gaze, with_landmark_embedding

log = logging.getLogger(__name__)

TrackerState = Literal["searching", "calibrating", "tracking", "lost"]
"""State of a tracker: searching for a face, calibrating the subject, tracking it, or the face is lost."""

CALIBRATION_SECONDS = 1.5
"""Minimum time, in seconds, between the first and the last frame from which a subject is calibrated."""
CALIBRATION_FRAMES = 12
"""Minimum number of frames with a face from which a subject is calibrated."""
MIN_FACE_PX = 8.0
"""Minimum side, in pixels, of the bounding box of landmarks received from a browser; smaller faces are ignored."""
ASPECT_TOLERANCE = 0.02
"""Relative difference of aspect ratios up to which two frame sizes are assumed to be of the same camera."""


def ignore_pose(_pose: TrackedState) -> None:
    """Do nothing: default callback ``on_pose`` of `Tracker.track`."""


class Tracker(Protocol):
    """Interface of a face tracker: converts camera frames to tracked frames, for one subject at a time.

    Attributes:
        may_adapt: whether the tracker may learn texture and landmark offsets from the current frames.  Set to False
            while it is uncertain that the face belongs to the tracked subject.
    """

    may_adapt: bool

    @property
    def state(self) -> TrackerState:
        """State of the tracker: ``searching`` for a face, ``calibrating``, ``tracking``, or the face is ``lost``."""
        ...

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of the tracked subject; None before calibration, or if none is needed (ground truth)."""
        ...

    @property
    def shape(self) -> Float32 | None:
        """Identity code (S,) of the tracked subject; None before calibration."""
        ...

    def track(self, frame: CameraFrame, on_pose: Callable[[TrackedState], None] = ignore_pose) -> TrackedFrame:
        """Track one camera frame; never raises because of the content of a frame.

        If the head is tracked, ``on_pose`` is called with its state before the matte is computed.  The result has no
        observation if no face is tracked.
        """
        ...

    def recalibrate(self, known: KnownSubject | None = None) -> None:
        """Drop the current subject; calibrate the next one seen, or track ``known``, a subject tracked before."""
        ...

    def residual_of(self, known: KnownSubject) -> Float32 | None:
        """Deviation (N, 2), in mm, of N points of the tracked subject's face from the same points of ``known``.

        Its affine part is removed, so that it is large only if these are different persons.  None if the two cannot be
        compared.
        """
        ...

    def close(self) -> None:
        """Release the models; the tracker must not be used afterwards."""
        ...


class FaceTracker:
    """Live tracker of one subject that uses MediaPipe's face models; needs one CPU core.

    All methods must be called from one thread; call `close` at the end.

    Args:
        head: the head model; a landmark embedding is computed for it if it has none (about a minute, then cached).
        size: side of the square crop, px.
        crop: policy by which the crop is chosen: ``auto``, ``head`` or ``center``.
        focal: focal length of the camera in px; None: estimated from the frame size.
        models: the face models; None: run by LiteRT, with files from the cache, or downloaded.
        calibration: stored calibration of the same subject and camera, used instead of a new one; None: there is none.

    Attributes:
        head: the head model, with a landmark embedding.
        may_adapt: as in `Tracker`.

    Raises UserError if the face models are not available.
    """

    def __init__(
        self,
        head: HeadModel,
        *,
        size: int = 512,
        crop: CropPolicy = "auto",
        focal: float | None = None,
        models: FaceModels | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.head = with_landmark_embedding(head, models)
        self._size, self._policy, self._focal, self._models = size, crop, focal, models
        self.may_adapt = True
        self._landmarker = FaceLandmarker(models, live=True)
        self._subject: _CalibratedSubject | None = None
        self._provisional: _CalibratedSubject | None = None  # calibrated from one frame; used until _subject is set
        self._stored = calibration
        self._known_shape: Float32 | None = None  # identity code of a known subject without calibration
        self._seen: list[tuple[int, FaceLandmarks]] = []  # capture times and faces collected for calibration
        self._shape = (0, 0)  # height and width of the frames so far
        self._lost = False

    @property
    def state(self) -> TrackerState:
        """State of the tracker: ``searching`` for a face, ``calibrating``, ``tracking``, or the face is ``lost``."""
        if self._subject is None:
            return "calibrating" if self._seen else "searching"
        return "lost" if self._lost else "tracking"

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of the tracked subject, including landmark offsets learned since; None before calibration."""
        return self._subject.head_tracker.calibration if self._subject is not None else None

    @property
    def shape(self) -> Float32 | None:
        """Identity code (S,) of the tracked subject; None before calibration."""
        return self._subject.shape if self._subject is not None else None

    def track(self, frame: CameraFrame, on_pose: Callable[[TrackedState], None] = ignore_pose) -> TrackedFrame:
        """Track one camera frame; the result's ``observation`` is None while searching, calibrating or lost.

        ``on_pose`` is called with the head state of a calibrated subject as soon as it is fitted; computing the matte
        takes about as long again.  While calibrating, the result has a ``provisional`` observation.  For a frame with
        landmarks but no image, it has a ``landmark_state`` in place of the observation, which is None if the frame's
        aspect ratio differs from that of the earlier frames.
        """
        if frame.landmarks_only:
            return self._track_landmarks(frame, on_pose)
        frame = self._at_known_size(frame)
        face = self._landmarker.detect(frame.rgb)
        if self._subject is None:
            self._add_calibration_sample(frame, face)
        if self._subject is None:
            return self._track_provisionally(frame, face)
        tracked = self._subject.track(frame, face, self.may_adapt, on_pose)
        self._lost = tracked.observation is None
        return tracked

    def _at_known_size(self, frame: CameraFrame) -> CameraFrame:
        """``frame`` enlarged to the size of the earlier frames, if it is smaller: WebRTC lowers the resolution.

        A larger frame, or one with another aspect ratio, comes from another camera: tracking is recalibrated.
        """
        import cv2

        (height, width), (known_height, known_width) = frame.rgb.shape[:2], self._shape
        if (height, width) == self._shape:
            return frame
        if height <= known_height and width <= known_width and self._has_known_aspect(height, width):
            rgb = cv2.resize(frame.rgb, (known_width, known_height), interpolation=cv2.INTER_LINEAR)
            return replace(frame, rgb=rgb.astype(np.uint8, copy=False))
        self._shape = (height, width)
        self.recalibrate(KnownSubject(self.shape, self.calibration) if self.shape is not None else None)
        return frame

    def _has_known_aspect(self, height: int, width: int) -> bool:
        """Whether frames of this size have the aspect ratio of the earlier frames."""
        return abs(width / height * self._shape[0] / self._shape[1] - 1.0) <= ASPECT_TOLERANCE

    def _track_landmarks(self, frame: CameraFrame, on_pose: Callable[[TrackedState], None]) -> TrackedFrame:
        """Track a frame of which only the landmarks were received."""
        height, width = frame.rgb.shape[:2]
        if self._shape == (0, 0):
            self._shape = (height, width)
        if not self._has_known_aspect(height, width):
            return self._landmark_frame(frame)
        face = None
        if frame.landmarks is not None:
            face = FaceLandmarks.from_normalised(frame.landmarks, self._shape[1], self._shape[0])
            left, top, right, bottom = face.box
            if min(right - left, bottom - top) < MIN_FACE_PX:
                face = None
        pose, residual = None, None
        try:
            if self._subject is None:
                self._add_calibration_sample(frame, face)
            if self._subject is not None:
                pose, residual = self._subject.track_landmarks(frame.t_capture_ns, face)
                self._lost = pose is None
        except (ArithmeticError, np.linalg.LinAlgError):
            log.warning("ignored landmarks from the browser to which no head can be fitted")
        if pose is not None:
            on_pose(pose)
        return self._landmark_frame(frame, residual, pose)

    def _landmark_frame(
        self, frame: CameraFrame, residual: Float32 | None = None, pose: TrackedState | None = None
    ) -> TrackedFrame:
        black = np.zeros((self._size, self._size, 3), np.uint8)
        return TrackedFrame(
            frame.frame_id, frame.t_capture_ns, black, None, residual, landmarks_only=True, landmark_state=pose
        )

    def recalibrate(self, known: KnownSubject | None = None) -> None:
        """Drop the current subject and calibrate from the next frames with a face.

        If ``known`` has a calibration for frames of this size, that is used at once; otherwise the identity code of
        ``known`` is kept, and the rest is calibrated.
        """
        if self._subject is not None:
            self._subject.close()
            self._stored = None
        self._close_provisional()
        if known is not None:
            self._stored, self._known_shape = known.calibration, known.shape
        self._subject = None
        self._seen.clear()
        self._lost = False

    def residual_of(self, known: KnownSubject) -> Float32 | None:
        """Deviation (N, 2), in mm, of the tracked subject's landmarks from those of ``known`` (`calibration_residual`).

        None if one of them has no calibration, or if the calibrations belong to different head models.
        """
        mine, theirs = self.calibration, known.calibration
        if mine is None or theirs is None or theirs.head_sha256 != mine.head_sha256:
            return None
        return calibration_residual(self.head, theirs, mine)

    def close(self) -> None:
        """Release the models; the tracker must not be used afterwards."""
        if self._subject is not None:
            self._subject.close()
        self._close_provisional()
        self._landmarker.close()

    def _track_provisionally(self, frame: CameraFrame, face: FaceLandmarks | None) -> TrackedFrame:
        """Track a frame before calibration is finished, with a calibration from the first frame that shows a face."""
        height, width = self._shape
        if self._provisional is None and face is not None:
            crop = choose_crop(self._policy, [face], width, height, self._size)
            guess = calibrate(self.head, [face], width, height, self._focal)
            self._provisional = _CalibratedSubject(self.head, guess, crop, face.face_size, self._models, None)
        if self._provisional is None:
            crop = choose_crop("center", [], width, height, self._size)
            return TrackedFrame(frame.frame_id, frame.t_capture_ns, crop.apply(frame.rgb), None)
        seen = self._provisional.track(frame, face, True, ignore_pose)
        provisional = (
            ProvisionalObservation(seen.observation, self._provisional.shape) if seen.observation is not None else None
        )
        return TrackedFrame(frame.frame_id, frame.t_capture_ns, seen.crop_rgb, None, provisional=provisional)

    def _close_provisional(self) -> None:
        if self._provisional is not None:
            self._provisional.close()
            self._provisional = None

    def _add_calibration_sample(self, frame: CameraFrame, face: FaceLandmarks | None) -> None:
        """Add a face to the calibration samples; set _subject if there are enough or a stored calibration is usable."""
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
            calibration = calibrate_gaze(self.head, calibration, faces)
            if known is not None:
                before = stored.offsets if stored is not None else 0.0
                shift = (calibration.offsets - before).astype(np.float64)
        else:
            return
        crop = choose_crop(self._policy, faces, width, height, self._size)
        size = float(np.median([face.face_size for face in faces]))
        self._subject = _CalibratedSubject(self.head, calibration, crop, size, self._models, shift)
        self._close_provisional()
        self._seen.clear()


class _CalibratedSubject:
    """A calibrated subject: its crop, matting, head tracker and head-state builder."""

    def __init__(
        self,
        head: HeadModel,
        calibration: Calibration,
        crop: Crop,
        face_size: float,
        models: FaceModels | None,
        shift: Float64 | None,
    ) -> None:
        """``shift`` (L, 3), in metres: landmark offsets of ``calibration`` minus those stored for the known subject."""
        self.shape = calibration.shape
        self.crop = crop
        self._matting = PersonMatting(head, calibration.shape, models, live=True)
        self.head_tracker = HeadTracker(head, calibration, self._matting, face_size)
        self._states = StateBuilder(head, calibration, self.head_tracker.basis)
        self._landmark_residual = LandmarkResidual(self.head_tracker.basis, shift)
        self._camera = crop.camera(self.head_tracker.camera)
        self._before_ns = 0

    def track(
        self, frame: CameraFrame, face: FaceLandmarks | None, may_adapt: bool, on_pose: Callable[[TrackedState], None]
    ) -> TrackedFrame:
        """Track one camera frame in which the landmarker found ``face``."""
        interval = (frame.t_capture_ns - self._before_ns) / 1e9
        fit, good = self.head_tracker.update(frame.rgb, face, interval)
        self._before_ns = frame.t_capture_ns
        state = None
        if good and fit is not None and face is not None:
            state = self._states.build(fit, face, frame.t_capture_ns)
            on_pose(TrackedState(state, self._camera))
        if may_adapt:
            self.head_tracker.learn()
        crop_rgb = self.crop.apply(frame.rgb)
        observation = None
        if state is not None and face is not None:
            alpha, body = self._matting.mattes(frame.rgb, face, self.crop, self._camera, state)
            observation = Observation(frame.frame_id, crop_rgb, alpha, self._camera, state, body)
        return TrackedFrame(frame.frame_id, frame.t_capture_ns, crop_rgb, observation, self._residual(fit))

    def track_landmarks(
        self, t_capture_ns: int, face: FaceLandmarks | None
    ) -> tuple[TrackedState | None, Float32 | None]:
        """Head state and residual from landmarks alone; the state is None if the fit is rejected."""
        fit, good = self.head_tracker.update(None, face, (t_capture_ns - self._before_ns) / 1e9)
        self._before_ns = t_capture_ns
        pose = None
        if good and fit is not None and face is not None:
            pose = TrackedState(self._states.build(fit, face, t_capture_ns), self._camera)
        return pose, self._residual(fit)

    def _residual(self, fit: HeadFit | None) -> Float32 | None:
        return self._landmark_residual.residual(fit, self.head_tracker.camera) if fit is not None else None

    def close(self) -> None:
        """Release the segmenter."""
        self._matting.close()

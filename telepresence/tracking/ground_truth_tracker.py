"""Tracker for sources that supply exact head states and mattes; needs neither MediaPipe nor model files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from insta_runtime.head import HeadModel
from insta_runtime.types import Bytes, Float32, HeadState, Observation
from telepresence.runtime.frames import CameraFrame, TrackedFrame, TrackedState

from .calibration import Calibration
from .landmark_residual import KnownSubject, shape_residual
from .tracker import TrackerState, ignore_pose


class GroundTruthTracker:
    """Tracker that passes on the head state and matte supplied with each frame (`CameraFrame.truth`).

    Like `FaceTracker`, it tracks the first subject that is seen after construction or `recalibrate`: ``shape`` and
    ``calibration`` are those of that subject, and later frames of another subject have a non-zero residual.

    Args:
        head: the head model.
        shape: (S,) identity code of the subject in frames whose ground truth contains none.
        size: side of the square crop, px.
        calibration: stored calibration of that subject; None if there is none.
    """

    def __init__(
        self, head: HeadModel, shape: Float32, *, size: int = 512, calibration: Calibration | None = None
    ) -> None:
        self.head = head
        self._shape = shape
        self._size = size
        self._calibration = calibration
        self.may_adapt = True
        self._default_shape = shape  # for frames that do not state an identity code
        self._given = False  # recalibrate() named the subject to track
        self._compared: tuple[Float32, Float32] | None = None  # identity code seen last, and its residual
        self._state: TrackerState = "searching"

    @property
    def state(self) -> TrackerState:
        """State of the tracker: ``searching``, ``tracking`` or ``lost``; it never calibrates."""
        return self._state

    @property
    def calibration(self) -> Calibration | None:
        """Stored calibration of the tracked subject; None if there is none, because head states are exact."""
        return self._calibration

    @property
    def shape(self) -> Float32:
        """Identity code (S,) of the tracked subject."""
        return self._shape

    def track(self, frame: CameraFrame, on_pose: Callable[[TrackedState], None] = ignore_pose) -> TrackedFrame:
        """Resize the whole frame to the crop size and attach the head state and matte of its ground truth.

        ``on_pose`` is called with the head state.  Without ground truth the returned observation is None.
        """
        size = (self._size, self._size)
        rgb = _resized(frame.rgb, size)
        truth = frame.truth
        if truth is None:
            self._state = "searching" if self._state == "searching" else "lost"
            return TrackedFrame(frame.frame_id, frame.t_capture_ns, rgb, None)
        seen = truth.shape if truth.shape is not None else self._default_shape
        if self._state == "searching" and not self._given and seen is not self._shape:
            self._shape, self._calibration = seen, None
        if self._compared is None or self._compared[0] is not seen or self._state == "searching":
            self._compared = seen, shape_residual(self.head, self._shape, seen)
        self._state = "tracking"
        alpha = _resized(truth.alpha, size)
        body = _resized(truth.body, size) if truth.body is not None else None
        state: HeadState = truth.state.at(frame.t_capture_ns)
        observation = Observation(frame.frame_id, rgb, alpha, truth.camera.scaled(*size), state, body)
        on_pose(TrackedState(state, observation.camera))
        return TrackedFrame(frame.frame_id, frame.t_capture_ns, rgb, observation, self._compared[1])

    def recalibrate(self, known: KnownSubject | None = None) -> None:
        """Drop the current subject, and track ``known``, or if it is None the subject of the next frame."""
        self._state = "searching"
        self._given = known is not None
        if known is not None:
            self._shape, self._calibration = known.shape, known.calibration

    def residual_of(self, known: KnownSubject) -> Float32 | None:
        """Deviation (N, 2), in mm, of the tracked subject's face from that of ``known`` (`shape_residual`).

        None if their identity codes differ in length, because they belong to different head models.
        """
        return shape_residual(self.head, known.shape, self._shape) if len(known.shape) == len(self._shape) else None

    def close(self) -> None:
        """Stop tracking; there is nothing to release."""
        self._state = "searching"


def _resized(image: Bytes, size: tuple[int, int]) -> Bytes:
    """Resize ``image`` (H, W) or (H, W, C) uint8 to ``size`` (height, width), bilinear."""
    from PIL import Image

    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))

"""Frames that are passed between the threads of the daemon: camera frames, tracked frames and rendered frames."""

from __future__ import annotations

from dataclasses import dataclass

from insta_runtime.types import Bytes, Camera, Float32, HeadState, Observation


@dataclass(frozen=True)
class GroundTruth:
    """Exact head state, matte and camera of a frame, known to sources such as the synthetic actor or a tracked folder.

    ``alpha`` (H, W) uint8 is the matte multiplied by the neck ramp, ``body`` (H, W) uint8 the matte without the ramp,
    both at the resolution of the frame.  ``shape`` (S,) is the identity code of the subject in this frame, given by
    sources whose subject can change.
    """

    state: HeadState
    alpha: Bytes
    camera: Camera
    body: Bytes | None = None
    shape: Float32 | None = None


@dataclass(frozen=True)
class Landmarks:
    """Face landmarks that a browser found in a frame whose image it does not send.

    ``points`` (478, 3) float32 are the landmarks of MediaPipe: x and y as fractions of the image's width and height, z
    as a fraction of its width.  ``scores`` (52,) float32 in [0, 1] are MediaPipe's blendshape scores, in its order.
    """

    points: Float32
    scores: Float32


@dataclass(frozen=True)
class CameraFrame:
    """One frame of a camera: ``rgb`` (H, W, 3) uint8, captured at ``t_capture_ns`` (monotonic nanoseconds).

    ``landmarks_only``: the browser sends landmarks without images; ``rgb`` is black, and ``landmarks`` is None if the
    browser found no face.
    """

    frame_id: int
    t_capture_ns: int
    rgb: Bytes
    truth: GroundTruth | None = None
    landmarks_only: bool = False
    landmarks: Landmarks | None = None


@dataclass(frozen=True)
class TrackedState:
    """Tracked head state with the camera in which it was tracked."""

    state: HeadState
    camera: Camera


@dataclass(frozen=True)
class ProvisionalObservation:
    """Observation tracked with a provisional identity code, while calibration is still running.

    It can be displayed but not learned from.  ``shape`` (S,) is the identity code, estimated from a single frame.
    """

    observation: Observation
    shape: Float32


@dataclass(frozen=True)
class TrackedFrame:
    """Result of tracking one camera frame.

    ``crop_rgb`` is the tracked crop; without a face it is the crop of the last face, and for a ``landmarks_only`` frame
    it is black.  ``observation`` is the crop with matte, head state and crop camera; None if no face is tracked.
    ``residual`` (N, 2), in mm, is the deviation of the face from the calibrated proportions
    (`telepresence.tracking.landmark_residual`); it is also given for faces whose fit was rejected, and is None
    without a face or while calibrating.  ``provisional`` is given only while calibrating.  ``landmark_state`` is
    the state tracked in a ``landmarks_only`` frame, which can be displayed but not learned from.
    """

    frame_id: int
    t_capture_ns: int
    crop_rgb: Bytes
    observation: Observation | None
    residual: Float32 | None = None
    provisional: ProvisionalObservation | None = None
    landmarks_only: bool = False
    landmark_state: TrackedState | None = None

    @property
    def tracked_state(self) -> TrackedState | None:
        """Tracked head state and camera, from the observation or from landmarks; None if no face is tracked."""
        seen = self.observation
        return TrackedState(seen.state, seen.camera) if seen is not None else self.landmark_state


@dataclass(frozen=True)
class RenderInputs:
    """Inputs from which a frame of the head was rendered.

    ``camera`` has the size that was rendered.  ``weights`` is the number of the newest published snapshot that the
    display had loaded (0: none).  ``at`` is the monotonic second at which rendering began.  ``shape`` (S,) is the
    identity code of the head; None before the subject is calibrated.
    """

    state: HeadState
    camera: Camera
    weights: int
    at: float
    shape: Float32 | None = None


@dataclass(frozen=True)
class OutputFrame:
    """Finished frame for viewers: ``rgb`` (H, W, 3) uint8, with the capture time (ns) of the state that it shows.

    ``is_avatar`` is True for the avatar and False for the coloured mesh, a camera frame or a card.  ``render_inputs``
    is None for a card or a camera frame.
    """

    frame_id: int
    t_capture_ns: int
    rgb: Bytes
    is_avatar: bool = False
    render_inputs: RenderInputs | None = None

"""What crosses the threads of the daemon: camera frames, tracked frames, pictures to show."""

from __future__ import annotations

from dataclasses import dataclass

from insta_runtime.types import Bytes, Camera, Float32, HeadState, Observation


@dataclass(frozen=True)
class Truth:
    """What a source knows about its own picture (the synthetic actor, a tracked folder): state, matte and camera.

    ``alpha`` (H, W) uint8 is matte x neck ramp, ``body`` the matte without the ramp, at the picture's resolution.
    ``shape`` (S,) is the identity code of who is seen, where that may change.
    """

    state: HeadState
    alpha: Bytes
    camera: Camera
    body: Bytes | None = None
    shape: Float32 | None = None


@dataclass(frozen=True)
class CameraFrame:
    """A picture as it comes from a source: ``rgb`` (H, W, 3) uint8; ``t_capture_ns`` monotonic."""

    frame_id: int
    t_capture_ns: int
    rgb: Bytes
    truth: Truth | None = None


@dataclass(frozen=True)
class Glimpse:
    """A face at first sight: fit to be shown, not to be learned from.

    ``observation`` is tracked with the identity code ``shape`` (S,), which one picture suggests.
    """

    observation: Observation
    shape: Float32


@dataclass(frozen=True)
class TrackedFrame:
    """What tracking made of a camera frame.

    ``observation`` is the cropped picture with matte, state and crop camera, or None while no face is
    tracked (``lost``).  ``crop_rgb`` is the cropped picture even when no face was found.  ``misfit`` (N, 2) mm says how
    the face that was found lies beside the proportions of the person tracked (`tracking.proportions`), also where the
    fit was not to be believed; None without a face, and while calibrating; then ``glimpse`` is the face at first sight.
    """

    frame_id: int
    t_capture_ns: int
    crop_rgb: Bytes
    observation: Observation | None
    misfit: Float32 | None = None
    glimpse: Glimpse | None = None


@dataclass(frozen=True)
class Drawn:
    """What a picture of a head was drawn from: the state, the camera at the side that was rendered, the weights.

    ``weights`` is the number of the newest published snapshot that the display had taken over; 0: none.  ``at`` is the
    second of the monotonic clock at which it was begun.
    """

    state: HeadState
    camera: Camera
    weights: int
    at: float


@dataclass(frozen=True)
class ShownFrame:
    """A finished picture for viewers: ``rgb`` (H, W, 3) uint8, with the capture time it belongs to.

    ``is_avatar`` tells an avatar picture from the coloured mesh or a card; ``drawn`` is None for a card.
    """

    frame_id: int
    t_capture_ns: int
    rgb: Bytes
    is_avatar: bool = False
    drawn: Drawn | None = None

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
class Landmarks:
    """What a browser found in a picture that it keeps to itself.

    ``points`` (478, 3) float32 are MediaPipe's, x and y in parts of the picture's width and height, z in parts of its
    width.  ``scores`` (52,) float32 in [0, 1] are its blendshapes, in its own order.
    """

    points: Float32
    scores: Float32


@dataclass(frozen=True)
class CameraFrame:
    """A picture as it comes from a source: ``rgb`` (H, W, 3) uint8; ``t_capture_ns`` monotonic.

    ``withheld``: the camera's owner keeps the picture, ``rgb`` is black, and ``landmarks`` are what was found in it
    (None: no face).
    """

    frame_id: int
    t_capture_ns: int
    rgb: Bytes
    truth: Truth | None = None
    withheld: bool = False
    landmarks: Landmarks | None = None


@dataclass(frozen=True)
class Pose:
    """A tracked state and the camera that it is seen by."""

    state: HeadState
    camera: Camera


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
    ``pose`` is that of ``observation``, or of a face whose picture was ``withheld``, when ``crop_rgb`` is black: it can
    be shown, not learned from.
    """

    frame_id: int
    t_capture_ns: int
    crop_rgb: Bytes
    observation: Observation | None
    misfit: Float32 | None = None
    glimpse: Glimpse | None = None
    withheld: bool = False
    blind: Pose | None = None

    @property
    def pose(self) -> Pose | None:
        seen = self.observation
        return Pose(seen.state, seen.camera) if seen is not None else self.blind


@dataclass(frozen=True)
class Drawn:
    """What a picture of a head was drawn from: the state, the camera at the side that was rendered, the weights.

    ``weights`` is the number of the newest published snapshot that the display had taken over; 0: none.  ``at`` is the
    second of the monotonic clock at which it was begun.  ``shape`` (S,) is the identity code of whose head it is; None
    as long as that is a guess.
    """

    state: HeadState
    camera: Camera
    weights: int
    at: float
    shape: Float32 | None = None


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

"""The values that travel through the avatar runtime: states, cameras, observations, pictures.

Conventions, everywhere in the project:

- Head space: metres, x to the subject's left, y up, z out of the face, origin near the head joint.
- Camera space: OpenCV (x right, y down, z forward), metres.  ``x_cam = R @ x_head + t``; a face that
  looks into the camera has ``R = diag(1, -1, -1)``.
- Rotations are axis-angle vectors in radians.  Pixel centres lie at +0.5.
- Everything that crosses a thread is a frozen dataclass with a frame id and a capture time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bytes = NDArray[np.uint8]


def _zeros(*shape: int) -> Float32:
    return np.zeros(shape, dtype=np.float32)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera (OpenCV axes, no distortion) for a picture of ``width`` x ``height`` pixels.

    ``fx, fy, cx, cy`` are in pixels; a point (x, y, z) lands at ``(fx * x / z + cx, fy * y / z + cy)``.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def scaled(self, width: int, height: int) -> Camera:
        """The same view at another resolution."""
        sx, sy = width / self.width, height / self.height
        return Camera(self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, width, height)

    def within(self, side: int) -> Camera:
        """The same view with a longest side of ``side`` pixels at most; pictures are never enlarged."""
        scale = min(1.0, side / max(self.width, self.height))
        return self.scaled(max(1, round(scale * self.width)), max(1, round(scale * self.height)))

    def cropped(self, left: float, top: float, width: int, height: int) -> Camera:
        """The view through a window of the picture whose upper left corner is (left, top)."""
        return Camera(self.fx, self.fy, self.cx - left, self.cy - top, width, height)

    def matrix(self) -> Float64:
        """The 3 x 3 intrinsic matrix K."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @staticmethod
    def from_matrix(k: NDArray[np.floating], width: int, height: int) -> Camera:
        """The camera with the 3 x 3 intrinsic matrix ``k`` (no skew)."""
        return Camera(float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]), width, height)


@dataclass(frozen=True)
class HeadState:
    """What a face does at one moment: all that moves the head mesh, but not who it is.

    Attributes (float32 numpy arrays):
        expression: (E,) weights; ARKit units in [0, 1] for the open head, about N(0, 1) for FLAME.
        jaw_pose, neck_pose: (3,) axis-angle of the jaw and neck joints.
        eye_pose: (2, 3) axis-angle of the left, then the right eye.
        eyelids: (2,) closing of the left, then the right lid, in [0, 1].
        rotation, translation: (3,) head to camera, ``x_cam = exp(rotation) @ x_head + translation``.
        t_capture_ns: monotonic capture time of the picture that this state belongs to.
    """

    expression: Float32
    jaw_pose: Float32 = field(default_factory=lambda: _zeros(3))
    neck_pose: Float32 = field(default_factory=lambda: _zeros(3))
    eye_pose: Float32 = field(default_factory=lambda: _zeros(2, 3))
    eyelids: Float32 = field(default_factory=lambda: _zeros(2))
    rotation: Float32 = field(default_factory=lambda: np.array([np.pi, 0.0, 0.0], dtype=np.float32))
    translation: Float32 = field(default_factory=lambda: np.array([0.0, 0.0, 0.6], dtype=np.float32))
    t_capture_ns: int = 0

    @staticmethod
    def neutral(expressions: int) -> HeadState:
        """A relaxed face that looks into the camera from 60 cm, with ``expressions`` units."""
        return HeadState(_zeros(expressions))

    def arrays(self) -> dict[str, Float32]:
        """Every array field by name (all but the time stamp)."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "t_capture_ns"}

    def at(self, t_capture_ns: int) -> HeadState:
        """The same state at another time."""
        return replace(self, t_capture_ns=t_capture_ns)


@dataclass(frozen=True)
class Take:
    """A recorded performance: N states of one person before one camera.

    ``states[i]`` is only meaningful where ``valid[i]``.  ``shape`` (S,) is the identity code of the head
    model whose file hash is ``head_sha256``; ``camera`` is the camera of the (cropped) pictures; ``crop``
    (left, top, side) is the window of the original picture that they show, in its pixels.
    """

    states: tuple[HeadState, ...]
    valid: NDArray[np.bool_]
    shape: Float32
    camera: Camera
    crop: tuple[float, float, float]
    head_sha256: str
    fps: float


@dataclass(frozen=True)
class HeadMesh:
    """A triangle mesh of the head: ``vertices`` (V, 3) float32 metres, ``faces`` (F, 3) int64, torch."""

    vertices: torch.Tensor
    faces: torch.Tensor


@dataclass(frozen=True)
class Observation:
    """One tracked picture to learn from.

    ``rgb`` (H, W, 3) uint8 sRGB and ``alpha`` (H, W) uint8 (matte x neck ramp: 255 = head, to be learned)
    belong to ``camera``; ``state`` is the tracked head state.  ``body`` (H, W) uint8 is the person's matte without
    the ramp, at least ``alpha`` everywhere; None where nobody has looked.
    """

    frame_id: int
    rgb: Bytes
    alpha: Bytes
    camera: Camera
    state: HeadState
    body: Bytes | None = None

    @property
    def t_capture_ns(self) -> int:
        return self.state.t_capture_ns


@dataclass(frozen=True)
class RenderedFrame:
    """An avatar picture: ``rgba`` (H, W, 4) float32 in [0, 1], colour premultiplied by alpha, sRGB, numpy."""

    frame_id: int
    t_capture_ns: int
    rgba: Float32

    def over(self, background: Float32) -> Bytes:
        """Composite over ``background`` ((3,) or (H, W, 3), in [0, 1]): (H, W, 3) uint8."""
        picture = self.rgba[..., :3] + (1.0 - self.rgba[..., 3:]) * background
        return (np.clip(picture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

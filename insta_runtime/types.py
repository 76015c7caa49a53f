"""Data types of the avatar runtime: cameras, head states, observations, rendered frames.

Conventions of the whole project:

- Head space: metres, x to the subject's left, y up, z out of the face, origin near the head joint.
- Camera space: OpenCV (x right, y down, z forward), metres.  ``x_cam = R @ x_head + t``; a face that
  looks into the camera has ``R = diag(1, -1, -1)``.
- Rotations are axis-angle vectors in radians.  Pixel centres lie at +0.5.
- Objects that are passed between threads are frozen dataclasses with a frame id and a capture time.
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
    """Pinhole camera (OpenCV axes, no distortion) of an image of ``width`` x ``height`` pixels.

    ``fx, fy, cx, cy`` are in pixels; a point (x, y, z) lands at ``(fx * x / z + cx, fy * y / z + cy)``.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def scaled(self, width: int, height: int) -> Camera:
        """Camera with the same field of view for an image resized to ``width`` x ``height`` pixels."""
        sx, sy = width / self.width, height / self.height
        return Camera(self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, width, height)

    def within(self, side: int) -> Camera:
        """Camera for the image reduced to a longest side of at most ``side`` pixels; images are never enlarged."""
        scale = min(1.0, side / max(self.width, self.height))
        return self.scaled(max(1, round(scale * self.width)), max(1, round(scale * self.height)))

    def cropped(self, left: float, top: float, width: int, height: int) -> Camera:
        """Camera of the crop of ``width`` x ``height`` pixels whose upper left corner is the pixel (left, top)."""
        return Camera(self.fx, self.fy, self.cx - left, self.cy - top, width, height)

    def matrix(self) -> Float64:
        """Intrinsic matrix K, (3, 3)."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @staticmethod
    def from_matrix(k: NDArray[np.floating], width: int, height: int) -> Camera:
        """Camera with the (3, 3) intrinsic matrix ``k``, without skew."""
        return Camera(float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]), width, height)


@dataclass(frozen=True)
class HeadState:
    """Expression and pose of a head at one moment: the parameters of the head mesh except the identity.

    Attributes (float32 numpy arrays):
        expression: (E,) expression weights; ARKit units in [0, 1] for the open head, about N(0, 1) for FLAME.
        jaw_pose, neck_pose: (3,) axis-angle rotations of the jaw and neck joints, radians.
        eye_pose: (2, 3) axis-angle rotations of the left, then the right eye, radians.
        eyelids: (2,) closing of the left, then the right lid, in [0, 1].
        rotation, translation: (3,) pose of the head in camera space, ``x_cam = exp(rotation) @ x_head + translation``:
            axis-angle vector in radians and metres.
        t_capture_ns: monotonic capture time, in nanoseconds, of the frame that this state belongs to.
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
        """Neutral face that looks into the camera from 60 cm, with ``expressions`` expression weights."""
        return HeadState(_zeros(expressions))

    def arrays(self) -> dict[str, Float32]:
        """Array fields by name: all fields except the capture time."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "t_capture_ns"}

    def at(self, t_capture_ns: int) -> HeadState:
        """Copy of this state with another capture time in nanoseconds."""
        return replace(self, t_capture_ns=t_capture_ns)


@dataclass(frozen=True)
class Take:
    """Recorded performance: N head states of one subject, tracked with one camera.

    Attributes:
        states: N head states; those that are not ``valid`` have no meaning.
        valid: (N,) bool, whether a face was tracked.
        shape: (S,) identity code of the head model.
        camera: camera of the cropped frames.
        crop: left, top and side of the crop in pixels of the original frames.
        head_sha256: SHA-256 of the file of the head model.
        fps: nominal frame rate, frames per second.
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
    """Triangle mesh of the head: torch tensors ``vertices`` (V, 3) float32 in metres and ``faces`` (F, 3) int64."""

    vertices: torch.Tensor
    faces: torch.Tensor


@dataclass(frozen=True)
class Observation:
    """One tracked frame for training: image, mattes, camera and head state.

    Attributes:
        frame_id: number of the frame in its source; -1 if the avatar rendered it.
        rgb: (H, W, 3) uint8 sRGB image.
        alpha: (H, W) uint8 matte of the head: the subject's matte times a ramp over the neck, 255 = head.
        camera: camera of the image.
        state: tracked head state.
        body: (H, W) uint8 matte of the whole subject, at least ``alpha`` everywhere; None if it was not computed.
    """

    frame_id: int
    rgb: Bytes
    alpha: Bytes
    camera: Camera
    state: HeadState
    body: Bytes | None = None

    @property
    def t_capture_ns(self) -> int:
        """Monotonic capture time in nanoseconds."""
        return self.state.t_capture_ns

    def premultiplied(
        self, size: int, device: torch.device | None = None, *, binary: bool = False
    ) -> tuple[torch.Tensor, Camera]:
        """Image with premultiplied alpha, reduced by area averaging to a longest side of ``size`` pixels.

        Args:
            size: longest side in pixels; images are never enlarged.
            device: device of the result; the CPU by default.
            binary: threshold the matte at one half first.

        Returns:
            RGBA (h, w, 4) float32 in [0, 1], and its camera.
        """
        import torch

        camera = self.camera.within(size)
        alpha = torch.from_numpy(self.alpha).to(device).float()[None] / 255.0
        if binary:
            alpha = (alpha > 0.5).float()
        rgb = torch.from_numpy(self.rgb).to(device).permute(2, 0, 1).float() / 255.0
        image = torch.cat([rgb * alpha, alpha])[None]
        small = torch.nn.functional.interpolate(image, (camera.height, camera.width), mode="area")[0]
        return small.permute(1, 2, 0).contiguous(), camera


@dataclass(frozen=True)
class RenderedFrame:
    """Rendered frame of an avatar.

    Attributes:
        frame_id: number of the frame, chosen by the caller of the renderer.
        t_capture_ns: capture time of the rendered head state, nanoseconds.
        rgba: (H, W, 4) float32 numpy array in [0, 1], sRGB with premultiplied alpha.
    """

    frame_id: int
    t_capture_ns: int
    rgba: Float32

    def over(self, background: Float32) -> Bytes:
        """Composite the frame over ``background`` ((3,) or (H, W, 3) sRGB in [0, 1]): (H, W, 3) uint8."""
        image = self.rgba[..., :3] + (1.0 - self.rgba[..., 3:]) * background
        return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

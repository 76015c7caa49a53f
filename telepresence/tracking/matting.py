"""Mattes of a camera frame: body matte of the subject, and alpha matte of the head, which is learned.

The body matte is computed by MediaPipe's selfie segmenter, on a window around the face, and beyond that window on the
whole crop.  Alpha is the body matte multiplied by the neck ramp: a height field on the rest mesh, rendered with the
posed mesh, that fades from below the chin to the collar.  So a torso that does not move with the head is excluded, at
the same place of the body in every frame; the torso is learned as a separate layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.render.raster import rasterise
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Bytes, Camera, Float32, HeadState

from .crop import Crop
from .face_models import FaceModels
from .landmarks import FaceLandmarks
from .selfie_segmenter import MATTE_SIZE

WINDOW = 2.6
"""Side of the window around the face that is segmented, as a multiple of the face size."""
RAMP_SIZE = 96
"""Side of the square image in which the neck ramp is rendered, in px."""
CHIN = 152
"""Landmark number of the tip of the chin."""
RAMP_TOP = 0.025
"""Distance below the chin, in metres, up to which the neck ramp is 1."""
RAMP_BOTTOM = 0.055
"""Distance below the chin, in metres, from which the neck ramp is 0."""
TILT = 0.35
"""Rise of the neck ramp, in metres per metre behind the chin, because collars are higher at the nape."""
BELOW = (0.0, 0.03)
"""Range of heights above the chin, in metres, over which pixels beside the mesh change from clothes to hair."""
LATERAL = (0.010, 0.035)
"""Range of distances beside the mesh, in metres, over which the neck ramp falls from 1 to 0 below the chin."""
UPPER = 0.06
"""Height above the chin, in metres; triangles above it cannot occlude the neck and are not rasterised."""
SEAM = 0.04
"""Width of the blend from the face window's matte to that of the crop, as a fraction of the window's side."""
BODY_S = 0.2
"""Minimum interval, in seconds, between live frames whose body matte needs a second segmentation."""


class PersonMatting:
    """Computes the mattes of one subject in camera frames; call `close` at the end.

    Args:
        head: the head model, with a landmark embedding.
        shape: (S,) identity code of the subject.
        models: the face models; None: the default ones.
        live: prefer a faster segmenter, and omit some body mattes (`mattes`).

    Attributes:
        ramp: neck ramp of the subject.

    Raises UserError if the segmenter is not available.
    """

    def __init__(self, head: HeadModel, shape: Float32, models: FaceModels | None = None, *, live: bool) -> None:
        self._segmenter = (models or FaceModels()).segmenter(live=live)
        self.ramp = NeckRamp(head, shape)
        self._between_ns = int(BODY_S * 1e9) if live else 0
        self._body_ns: int | None = None

    def mattes(
        self, rgb: Bytes, face: FaceLandmarks, crop: Crop, camera: Camera, state: HeadState
    ) -> tuple[Bytes, Bytes | None]:
        """Two mattes of the crop, (size, size) uint8: alpha (body matte times neck ramp), and the body matte.

        The body matte is None for live frames in which it would need a second segmentation less than `BODY_S` seconds
        after the last one.

        Args:
            rgb: (H, W, 3) uint8, the whole frame.
            face: landmarks of the subject in the whole frame.
            crop: window of the frame.
            camera: camera of the crop.
            state: head state in this frame.
        """
        import cv2

        window = _Window.around(face, rgb)
        body = window.to_crop(self._segment_subject(rgb, face, window), crop)
        low = self.ramp.render(state, camera.scaled(RAMP_SIZE, RAMP_SIZE))
        ramp = cv2.resize(low, (crop.size, crop.size), interpolation=cv2.INTER_LINEAR)
        alpha = (body * ramp * 255.0 + 0.5).astype(np.uint8)
        whole_crop = _Window.of(crop, rgb)
        if window.contains(whole_crop):
            return alpha, (body * 255.0 + 0.5).astype(np.uint8)
        now = state.t_capture_ns
        if self._body_ns is not None and 0 <= now - self._body_ns < self._between_ns:
            return alpha, None
        self._body_ns = now
        far = whole_crop.to_crop(self._segment_subject(rgb, face, whole_crop), crop)
        near = window.to_crop(window.blend_weights(), crop)
        return alpha, ((far + near * (body - far)) * 255.0 + 0.5).astype(np.uint8)

    def body_matte(self, rgb: Bytes, face: FaceLandmarks, crop: Crop) -> Float32:
        """Matte of the whole person in the crop, without neck ramp, (size, size) float32 in [0, 1].

        Only a window around the face is segmented; beyond it the matte is 0.
        """
        window = _Window.around(face, rgb)
        return window.to_crop(self._segment_subject(rgb, face, window), crop)

    def close(self) -> None:
        """Release the segmenter."""
        self._segmenter.close()

    def _segment_subject(self, rgb: Bytes, face: FaceLandmarks, window: _Window) -> Float32:
        """Matte of the window, (MATTE_SIZE, MATTE_SIZE) float32: the connected component that contains the face."""
        import cv2

        matte = self._segmenter.segment(window.cut(rgb))
        _, labels = cv2.connectedComponents((matte > 0.1).astype(np.uint8))
        left, top, right, bottom = face.box
        middle = (((left + right) / 2 - window.x) / window.side, ((top + bottom) / 2 - window.y) / window.side)
        column, row = (int(np.clip(part * MATTE_SIZE, 0, MATTE_SIZE - 1)) for part in middle)
        return np.where(labels == labels[row, column], matte, 0.0).astype(np.float32)


@dataclass(frozen=True)
class _Window:
    """Square window of the frame that is segmented: upper left corner and side, in whole pixels."""

    x: int
    y: int
    side: int

    @staticmethod
    def around(face: FaceLandmarks, rgb: Bytes) -> _Window:
        """Window around ``face``, with `WINDOW` times its size, moved and shrunk to lie inside the frame."""
        height, width = rgb.shape[:2]
        left, top, right, bottom = face.box
        side = min(WINDOW * face.face_size, width, height)
        x = int(np.clip((left + right - side) / 2, 0, width - side))
        y = int(np.clip((top + bottom - side) / 2, 0, height - side))
        return _Window(x, y, int(side))

    @staticmethod
    def of(crop: Crop, rgb: Bytes) -> _Window:
        """Window of the crop, moved and shrunk to lie inside the frame."""
        height, width = rgb.shape[:2]
        side = min(crop.side, width, height)
        x = int(np.clip(crop.left, 0, width - side))
        return _Window(x, int(np.clip(crop.top, 0, height - side)), side)

    def contains(self, other: _Window) -> bool:
        """Whether ``other`` lies in this window, with a tolerance of 1 % of its side."""
        slack = round(0.01 * self.side)
        return (
            self.x <= other.x + slack
            and self.y <= other.y + slack
            and self.x + self.side >= other.x + other.side - slack
            and self.y + self.side >= other.y + other.side - slack
        )

    def cut(self, rgb: Bytes) -> Bytes:
        """Cut the window from ``rgb`` and resize it to the segmenter's input, (MATTE_SIZE, MATTE_SIZE, 3) uint8."""
        import cv2

        part = rgb[self.y : self.y + self.side, self.x : self.x + self.side]
        return cv2.resize(part, (MATTE_SIZE, MATTE_SIZE), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)

    def blend_weights(self) -> Float32:
        """Weights (MATTE_SIZE, MATTE_SIZE) float32: 1 inside, fading to 0 at the window's edge over `SEAM`."""
        edge = (np.arange(MATTE_SIZE, dtype=np.float32) + 0.5) / MATTE_SIZE
        depth = np.minimum(edge, 1.0 - edge)
        return _fade(-np.minimum(depth[:, None], depth[None, :]), -SEAM, 0.0)

    def to_crop(self, matte: Float32, crop: Crop) -> Float32:
        """Resample a matte of this window to the pixels of the crop, (size, size) float32; 0 beyond the window."""
        import cv2

        # From pixels of the window to pixels of the crop; both have their centres at +0.5.
        scale = (self.side / MATTE_SIZE) * (crop.size / crop.side)
        shift_x, shift_y = ((self.x - crop.left) * crop.size / crop.side, (self.y - crop.top) * crop.size / crop.side)
        to_crop = np.array(
            [[scale, 0.0, shift_x + (scale - 1) / 2], [0.0, scale, shift_y + (scale - 1) / 2]], dtype=np.float64
        )
        warped = cv2.warpAffine(matte, to_crop, (crop.size, crop.size), flags=cv2.INTER_LINEAR)
        return np.clip(warped, 0.0, 1.0).astype(np.float32)


class NeckRamp:
    """Neck ramp of one subject: a mask that fades from 1 to 0 below the chin, where the learned head ends.

    Args:
        head: the head model, with a landmark embedding.
        shape: (S,) identity code of the subject.
    """

    def __init__(self, head: HeadModel, shape: Float32) -> None:
        self._rig = HeadRig(head)
        self._shape = shape
        rest = head.template + np.tensordot(shape, head.shape_dirs, 1)
        _, chin_y, chin_z = _landmark(head, rest, CHIN)
        above = rest[:, 1] - chin_y
        self._height = torch.from_numpy((above - TILT * (chin_z - rest[:, 2]))[:, None].astype(np.float32))  # (V, 1) m
        low = above[head.faces].min(1) < UPPER
        self._faces = torch.from_numpy(head.faces[low & (head.face_group == 0)])

    def render(self, state: HeadState, camera: Camera) -> Float32:
        """Render the neck ramp, (H, W) float32 in [0, 1] for ``camera``: 1 on the head, fading to 0 at the collar."""
        import cv2

        vertices = self._rig.pose(self._shape, state).vertices
        turn = torch.from_numpy(rotation_matrix(state.rotation).astype(np.float32))
        posed = vertices @ turn.T + torch.from_numpy(state.translation)
        raster = rasterise(posed, self._faces, camera)
        if not bool(raster.mask.any()):
            return np.ones((camera.height, camera.width), np.float32)
        field = raster.interpolate(self._height)[..., 0].numpy()
        covered = raster.mask.numpy()
        distance, nearest = cv2.distanceTransformWithLabels(
            (~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        pixel_size = float(state.translation[2]) / camera.fx  # m
        # Beyond the mesh, a pixel's height is extrapolated from the nearest pixel on it along the head's up axis.
        rows, columns = np.indices(covered.shape, dtype=np.float32)
        along_up = (columns * float(turn[0, 1]) + rows * float(turn[1, 1])) * pixel_size
        of_label = np.zeros(int(nearest.max()) + 1, np.float32)
        of_label[nearest[covered]] = (field - along_up)[covered]
        height = of_label[nearest] + along_up
        metres = distance * pixel_size
        down = _fade(-height, RAMP_TOP, RAMP_BOTTOM)
        # Below the chin, pixels beside the neck are shoulders and collars; above it they are hair, which is kept.
        beside = _fade(metres, *LATERAL)
        below = _fade(height, *BELOW)
        ramp = down * (1.0 - below * (1.0 - beside))
        return cv2.GaussianBlur(ramp, (0, 0), camera.height / 200).astype(np.float32)


def _landmark(head: HeadModel, vertices: Float32, landmark: int) -> tuple[float, float, float]:
    """Position (x, y, z), in metres, of ``landmark`` on the mesh with ``vertices`` (V, 3)."""
    assert head.embedding is not None
    corners = vertices[head.faces[head.embedding.face[landmark]]]
    x, y, z = (float(value) for value in head.embedding.bary[landmark] @ corners)
    return x, y, z


def _fade(value: NDArray[np.float32], one: float, zero: float) -> NDArray[np.float32]:
    """Smoothstep of ``value``: 1 up to ``one``, falling to 0 from ``zero`` on."""
    return smoothstep(value, zero, one).astype(np.float32)

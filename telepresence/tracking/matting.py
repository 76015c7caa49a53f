"""The mattes: which pixels belong to the person, and which of these to the head that is learned.

The body's matte is MediaPipe's selfie segmenter on a window around the face, and beyond that window on the whole crop.
Alpha is the product of the person's matte and a ramp over the neck: a height field of the rest mesh, drawn with the
posed mesh, that fades from under the chin to the collar.  So a torso that does not move with the head is left out, at
the same place of the body in every picture; it is learned as a layer of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.render.raster import rasterise
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Bytes, Camera, Float32, HeadState

from .crop import Crop
from .landmarks import FaceLandmarks
from .models import import_mediapipe, quietly, segmenter_path

WINDOW = 2.6  # side of the window that is segmented, in face sizes
WINDOW_SIZE = 256  # px that the segmenter looks at
RAMP_SIZE = 96  # px of the height field
CHIN = 152  # landmark
RAMP_TOP, RAMP_BOTTOM = 0.025, 0.055  # m below the chin: alpha 1 and 0
TILT = 0.35  # m that the ramp rises for each metre behind the chin: collars stand higher at the nape
BELOW = (0.0, 0.03)  # m above the chin: where hair beside the face turns into what lies beside the neck
LATERAL = (0.010, 0.035)  # m beside the mesh, below the chin: alpha 1 and 0
UPPER = 0.06  # m above the chin: higher triangles cannot hide the neck
SEAM = 0.04  # part of the window's side over which the face's matte turns into that of the whole crop
BODY_S = 0.2  # live, a body that reaches beyond the window is cut out so often


class Matter:
    """Mattes the pictures of one person.  Close it when done."""

    def __init__(self, head: HeadModel, shape: Float32, models: Path | None = None, *, live: bool) -> None:
        self._mediapipe = mediapipe = import_mediapipe()
        vision = mediapipe.tasks.vision
        base = mediapipe.tasks.BaseOptions(model_asset_path=str(segmenter_path(models, fast=live)))
        options = vision.ImageSegmenterOptions(
            base_options=base,
            running_mode=vision.RunningMode.IMAGE,
            output_confidence_masks=True,
            output_category_mask=False,
        )
        with quietly():
            self._segmenter = vision.ImageSegmenter.create_from_options(options)
            self._segment(np.zeros((WINDOW_SIZE, WINDOW_SIZE, 3), np.uint8))
        self.ramp = NeckRamp(head, shape)
        self._between_ns = int(BODY_S * 1e9) if live else 0
        self._body_ns: int | None = None

    def mattes(
        self, rgb: Bytes, face: FaceLandmarks, crop: Crop, camera: Camera, state: HeadState
    ) -> tuple[Bytes, Bytes | None]:
        """Two mattes of the crop, (size, size) uint8: alpha (person x neck ramp), and the whole body.

        The body is None in live pictures where it would cost a second look and one was taken less than `BODY_S` ago.
        ``rgb`` is the whole picture, ``face`` in its pixels; ``camera`` and ``state`` are those of the crop.
        """
        import cv2

        window = _Window.around(face, rgb)
        person = window.to_crop(self._person(rgb, face, window), crop)
        low = self.ramp.draw(state, camera.scaled(RAMP_SIZE, RAMP_SIZE))
        ramp = cv2.resize(low, (crop.size, crop.size), interpolation=cv2.INTER_LINEAR)
        alpha = (person * ramp * 255.0 + 0.5).astype(np.uint8)
        everything = _Window.of(crop, rgb)
        if window.holds(everything):
            return alpha, (person * 255.0 + 0.5).astype(np.uint8)
        now = state.t_capture_ns
        if self._body_ns is not None and 0 <= now - self._body_ns < self._between_ns:
            return alpha, None
        self._body_ns = now
        far = everything.to_crop(self._person(rgb, face, everything), crop)
        near = window.to_crop(window.inner(), crop)
        return alpha, ((far + near * (person - far)) * 255.0 + 0.5).astype(np.uint8)

    def person(self, rgb: Bytes, face: FaceLandmarks, crop: Crop) -> Float32:
        """(size, size) float32 in [0, 1]: the person's matte of the crop alone, without the neck ramp."""
        window = _Window.around(face, rgb)
        return window.to_crop(self._person(rgb, face, window), crop)

    def close(self) -> None:
        self._segmenter.close()

    def _segment(self, window: NDArray[Any]) -> Float32:
        """(WINDOW_SIZE, WINDOW_SIZE, 3) uint8 to the person's probability, same size."""
        mediapipe = self._mediapipe
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(window))
        mask = self._segmenter.segment(image).confidence_masks[0].numpy_view()  # (H, W, 1), gone with the image
        return np.array(mask, dtype=np.float32).reshape(WINDOW_SIZE, WINDOW_SIZE)

    def _person(self, rgb: Bytes, face: FaceLandmarks, window: _Window) -> Float32:
        """(WINDOW_SIZE, WINDOW_SIZE) float32 in [0, 1]: the component of the segmenter's matte that holds the face."""
        import cv2

        matte = self._segment(window.cut(rgb))
        _, labels = cv2.connectedComponents((matte > 0.1).astype(np.uint8))
        left, top, right, bottom = face.box
        middle = (((left + right) / 2 - window.x) / window.side, ((top + bottom) / 2 - window.y) / window.side)
        column, row = (int(np.clip(part * WINDOW_SIZE, 0, WINDOW_SIZE - 1)) for part in middle)
        return np.where(labels == labels[row, column], matte, 0.0).astype(np.float32)


@dataclass(frozen=True)
class _Window:
    """A square of the picture that the segmenter looks at: its upper left corner and side in whole pixels."""

    x: int
    y: int
    side: int

    @staticmethod
    def around(face: FaceLandmarks, rgb: Bytes) -> _Window:
        """`WINDOW` times the face, inside the picture."""
        height, width = rgb.shape[:2]
        left, top, right, bottom = face.box
        side = min(WINDOW * face.face_size, width, height)
        x = int(np.clip((left + right - side) / 2, 0, width - side))
        y = int(np.clip((top + bottom - side) / 2, 0, height - side))
        return _Window(x, y, int(side))

    @staticmethod
    def of(crop: Crop, rgb: Bytes) -> _Window:
        """The crop, as far as it is inside the picture."""
        height, width = rgb.shape[:2]
        side = min(crop.side, width, height)
        x = int(np.clip(crop.left, 0, width - side))
        return _Window(x, int(np.clip(crop.top, 0, height - side)), side)

    def holds(self, other: _Window) -> bool:
        """Whether all of ``other`` lies in this window, but for a hair's breadth."""
        slack = round(0.01 * self.side)
        return (
            self.x <= other.x + slack
            and self.y <= other.y + slack
            and self.x + self.side >= other.x + other.side - slack
            and self.y + self.side >= other.y + other.side - slack
        )

    def cut(self, rgb: Bytes) -> Bytes:
        """The window at the segmenter's resolution: (WINDOW_SIZE, WINDOW_SIZE, 3) uint8."""
        import cv2

        part = rgb[self.y : self.y + self.side, self.x : self.x + self.side]
        return cv2.resize(part, (WINDOW_SIZE, WINDOW_SIZE), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)

    def inner(self) -> Float32:
        """(WINDOW_SIZE, WINDOW_SIZE) float32: 1 inside, fading to 0 at the window's edge over `SEAM`."""
        edge = (np.arange(WINDOW_SIZE, dtype=np.float32) + 0.5) / WINDOW_SIZE
        depth = np.minimum(edge, 1.0 - edge)
        return _fade(-np.minimum(depth[:, None], depth[None, :]), -SEAM, 0.0)

    def to_crop(self, matte: Float32, crop: Crop) -> Float32:
        """``matte`` of this window as the crop's pixels see it, (size, size); 0 beyond the window."""
        import cv2

        # From pixels of the window to pixels of the crop; both have their centres at +0.5.
        scale = (self.side / WINDOW_SIZE) * (crop.size / crop.side)
        shift_x, shift_y = ((self.x - crop.left) * crop.size / crop.side, (self.y - crop.top) * crop.size / crop.side)
        to_crop = np.array(
            [[scale, 0.0, shift_x + (scale - 1) / 2], [0.0, scale, shift_y + (scale - 1) / 2]], dtype=np.float64
        )
        warped = cv2.warpAffine(matte, to_crop, (crop.size, crop.size), flags=cv2.INTER_LINEAR)
        return np.clip(warped, 0.0, 1.0).astype(np.float32)


class NeckRamp:
    """Where below the chin of one person the head that is learned ends."""

    def __init__(self, head: HeadModel, shape: Float32) -> None:
        self._rig = HeadRig(head)
        self._shape = shape
        rest = head.template + np.tensordot(shape, head.shape_dirs, 1)
        _, chin_y, chin_z = _landmark(head, rest, CHIN)
        above = rest[:, 1] - chin_y
        self._height = torch.from_numpy((above - TILT * (chin_z - rest[:, 2]))[:, None].astype(np.float32))  # (V, 1) m
        low = above[head.faces].min(1) < UPPER
        self._faces = torch.from_numpy(head.faces[low & (head.face_group == 0)])

    def draw(self, state: HeadState, camera: Camera) -> Float32:
        """(H, W) float32 in [0, 1]: 1 on the head, fading to 0 at the collar."""
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
        # Beyond the mesh a pixel takes the height of the nearest pixel on it, and goes on along the head's up axis.
        rows, columns = np.indices(covered.shape, dtype=np.float32)
        along_up = (columns * float(turn[0, 1]) + rows * float(turn[1, 1])) * pixel_size
        of_label = np.zeros(int(nearest.max()) + 1, np.float32)
        of_label[nearest[covered]] = (field - along_up)[covered]
        height = of_label[nearest] + along_up
        metres = distance * pixel_size
        down = _fade(-height, RAMP_TOP, RAMP_BOTTOM)
        # Beside the neck lie shoulders and collars; beside the cheeks hair, which stays.
        beside = _fade(metres, *LATERAL)
        below = _fade(height, *BELOW)
        ramp = down * (1.0 - below * (1.0 - beside))
        return cv2.GaussianBlur(ramp, (0, 0), camera.height / 200).astype(np.float32)


def _landmark(head: HeadModel, vertices: Float32, landmark: int) -> tuple[float, float, float]:
    """Where ``landmark`` lies on ``vertices`` (V, 3)."""
    assert head.embedding is not None
    corners = vertices[head.faces[head.embedding.face[landmark]]]
    x, y, z = (float(value) for value in head.embedding.bary[landmark] @ corners)
    return x, y, z


def _fade(value: NDArray[np.float32], one: float, zero: float) -> NDArray[np.float32]:
    """1 up to ``one``, 0 from ``zero`` on, smooth between."""
    return smoothstep(value, zero, one).astype(np.float32)

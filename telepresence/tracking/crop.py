"""Square crop of the camera frame that is matted and learned from; chosen once per calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from insta_runtime.types import Bytes, Camera

from .head_fit import Pinhole
from .landmarks import FaceLandmarks

CropPolicy = Literal["auto", "head", "center"]
"""Policy by which `choose_crop` selects the crop: around the head, the centred square, or ``auto`` by face size."""

LARGE_FACE = 1 / 4
"""Minimum face size, as a fraction of the centred square's side, for which policy ``auto`` chooses that square."""
HEAD_SCALE = 2.2
"""Side of the crop around a head, as a multiple of the face size (`FaceLandmarks.face_size`)."""
HEAD_MARGIN = 0.8
"""Minimum margin around the landmarks of all frames, both sides together, as a multiple of the face size."""
HEAD_RISE = 0.12
"""Distance of the crop's centre above the centre of the landmarks, as a multiple of the face size."""


@dataclass(frozen=True)
class Crop:
    """Square window of a frame (``left``, ``top``, ``side`` in whole pixels), resized to ``size`` x ``size`` px."""

    left: int
    top: int
    side: int
    size: int

    @property
    def window(self) -> tuple[float, float, float]:
        """Left, top and side of the window in pixels of the frame."""
        return float(self.left), float(self.top), float(self.side)

    def camera(self, camera: Pinhole) -> Camera:
        """Intrinsics of the cropped and resized image, given the ``camera`` of the whole frame."""
        scale = self.size / self.side
        focal = camera.focal * scale
        return Camera(
            focal, focal, (camera.cx - self.left) * scale, (camera.cy - self.top) * scale, self.size, self.size
        )

    def apply(self, rgb: Bytes) -> Bytes:
        """Crop ``rgb`` (H, W, 3) uint8 and resize to (size, size, 3); beyond the frame, edge pixels are repeated."""
        import cv2

        height, width = rgb.shape[:2]
        right, bottom = self.left + self.side, self.top + self.side
        before = max(0, -self.top), max(0, -self.left)
        after = max(0, bottom - height), max(0, right - width)
        if any(before + after):
            rgb = np.pad(rgb, [*zip(before, after, strict=True), (0, 0)], mode="edge")
        top, left = self.top + before[0], self.left + before[1]
        window = rgb[top : top + self.side, left : left + self.side]
        if self.side == self.size:
            return np.ascontiguousarray(window)
        shrinks = self.side > self.size
        way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(window, (self.size, self.size), interpolation=way).astype(np.uint8, copy=False)


def choose_crop(policy: CropPolicy, faces: Sequence[FaceLandmarks], width: int, height: int, size: int) -> Crop:
    """Choose the crop, resized to ``size`` px, for frames of ``width`` x ``height`` px in which ``faces`` were found.

    ``center``: the largest centred square, also chosen if ``faces`` is empty.  ``head``: a square around the head,
    moved and shrunk to lie inside the frame.  ``auto``: the centred square if it contains all faces, and they are at
    least a quarter of its side in size; else as ``head``.
    """
    side = min(width, height)
    middle = Crop((width - side) // 2, (height - side) // 2, side, size)
    if policy == "center" or not faces:
        return middle
    boxes = np.array([face.box for face in faces])
    face_size = float(np.median([face.face_size for face in faces]))
    # Percentiles, so that a single wrong detection does not decide.
    left, top = np.percentile(boxes[:, :2], 2, axis=0)
    right, bottom = np.percentile(boxes[:, 2:], 98, axis=0)
    inside = left >= middle.left and right <= middle.left + side and top >= middle.top and bottom <= middle.top + side
    if policy == "auto" and inside and face_size >= LARGE_FACE * side:
        return middle
    reach = max(right - left, bottom - top) + HEAD_MARGIN * face_size
    side = round(min(side, max(HEAD_SCALE * face_size, reach)))
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2 - HEAD_RISE * face_size
    return Crop(_within(centre_x - side / 2, width - side), _within(centre_y - side / 2, height - side), side, size)


def _within(value: float, limit: int) -> int:
    return round(min(max(value, 0.0), limit))

"""Pictures on their way to the window, and what it makes of them: the views, and how two pictures differ."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from insta_runtime.types import Bytes

MAX_SIDE: Final = 1024
CAPACITY: Final = 32 + 4 * MAX_SIDE * MAX_SIDE
"""Bytes of a picture with its matte."""

GAIN: Final = 3
"""What the difference of two pictures is multiplied by: what one sees in them is a few steps of 256."""

_HEADER: Final = struct.Struct("<qHH??xx")  # capture time, height, width, whether a head was drawn, and has a matte


class PreviewView(StrEnum):
    """What the window shows."""

    AVATAR = "avatar"
    CAMERA = "camera"
    BOTH = "both"
    DIFFERENCE = "difference"


@dataclass(frozen=True)
class PreviewImage:
    """``rgb`` (H, W, 3) uint8, the capture time it belongs to, and the ``matte`` (H, W) uint8 of who is seen.

    ``drawn``: it is a head that was rendered, as of ``t_capture_ns``; no card.
    """

    t_capture_ns: int
    rgb: Bytes
    matte: Bytes | None = None
    drawn: bool = False

    def parts(self) -> tuple[bytes | Bytes, ...]:
        """What `read` makes a shot of; pictures larger than `MAX_SIDE` are thinned by leaving out pixels."""
        step = -(-max(self.rgb.shape[:2]) // MAX_SIDE)
        rgb = np.ascontiguousarray(self.rgb[::step, ::step])
        header = _HEADER.pack(self.t_capture_ns, *rgb.shape[:2], self.drawn, self.matte is not None)
        return (header, rgb) if self.matte is None else (header, rgb, np.ascontiguousarray(self.matte[::step, ::step]))

    @staticmethod
    def read(data: bytes) -> PreviewImage:
        """The shot whose `parts` are ``data``."""
        t_capture_ns, height, width, drawn, matted = _HEADER.unpack_from(data)
        pixels = height * width
        rgb = np.frombuffer(data, np.uint8, 3 * pixels, _HEADER.size).reshape(height, width, 3)
        matte = None
        if matted:
            matte = np.frombuffer(data, np.uint8, pixels, _HEADER.size + 3 * pixels).reshape(height, width)
        return PreviewImage(t_capture_ns, rgb, matte, drawn)


@dataclass(frozen=True)
class ImageDifference:
    """``rgb`` (H, W, 3) uint8: by how much two pictures differ, times `GAIN`; ``psnr_db`` the same as one number."""

    rgb: Bytes
    psnr_db: float

    @staticmethod
    def of(shown: PreviewImage, camera: PreviewImage) -> ImageDifference:
        """Where the matte of ``camera`` says that the head is: what is behind it is not to be alike."""
        seen, matte = _fitted(camera, *shown.rgb.shape[:2])
        apart = np.maximum(shown.rgb, seen) - np.minimum(shown.rgb, seen)
        if matte is not None:
            inside = matte > 127
            squares = np.square(apart[inside], dtype=np.float32)
            apart = ((apart.astype(np.uint16) * matte[..., None]) >> 8).astype(np.uint8)
        else:
            squares = np.square(apart, dtype=np.float32)
        mean = float(squares.mean()) if squares.size else 0.0
        psnr = 10.0 * np.log10(255.0**2 / max(mean, 1e-3))
        return ImageDifference((np.minimum(apart, 255 // GAIN) * np.uint8(GAIN)).astype(np.uint8), float(psnr))


def _fitted(shot: PreviewImage, height: int, width: int) -> tuple[Bytes, Bytes | None]:
    """Picture and matte at another size."""
    if shot.rgb.shape[:2] == (height, width):
        return shot.rgb, shot.matte
    from PIL import Image

    size = (width, height)
    rgb = np.asarray(Image.fromarray(shot.rgb).resize(size, Image.Resampling.BILINEAR))
    if shot.matte is None:
        return rgb, None
    return rgb, np.asarray(Image.fromarray(shot.matte).resize(size, Image.Resampling.BILINEAR))

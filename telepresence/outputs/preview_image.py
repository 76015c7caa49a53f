"""Serialised images for the preview window, the views of the window, and the difference of two images."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from insta_runtime.types import Bytes

MAX_SIDE: Final = 1024
"""Maximum width and height in pixels of an image in the preview; larger ones are subsampled."""
CAPACITY: Final = 32 + 4 * MAX_SIDE * MAX_SIDE
"""Maximum size in bytes of one serialised image with matte and header."""

GAIN: Final = 3
"""Factor by which the displayed difference of two images is amplified."""

_HEADER: Final = struct.Struct("<qHH??xx")  # capture time, height, width, whether a head is drawn, whether with matte


class PreviewView(StrEnum):
    """View of the preview window: avatar, camera, both side by side, or their difference."""

    AVATAR = "avatar"
    CAMERA = "camera"
    BOTH = "both"
    DIFFERENCE = "difference"


@dataclass(frozen=True)
class PreviewImage:
    """One image for the preview window.

    Attributes:
        t_capture_ns: capture time (monotonic ns) of the camera frame that it contains or was rendered for.
        rgb: (H, W, 3) uint8 colours.
        matte: (H, W) uint8 alpha of the subject; None without a matte.
        drawn: whether it is a rendered head; False for a card with text and for a camera image.
    """

    t_capture_ns: int
    rgb: Bytes
    matte: Bytes | None = None
    drawn: bool = False

    def parts(self) -> tuple[bytes | Bytes, ...]:
        """Serialise the image to pieces of bytes that `read` decodes when joined; larger images are subsampled to
        `MAX_SIDE`."""
        step = -(-max(self.rgb.shape[:2]) // MAX_SIDE)
        rgb = np.ascontiguousarray(self.rgb[::step, ::step])
        header = _HEADER.pack(self.t_capture_ns, *rgb.shape[:2], self.drawn, self.matte is not None)
        return (header, rgb) if self.matte is None else (header, rgb, np.ascontiguousarray(self.matte[::step, ::step]))

    @staticmethod
    def read(data: bytes) -> PreviewImage:
        """Decode the joined bytes of `parts`."""
        t_capture_ns, height, width, drawn, matted = _HEADER.unpack_from(data)
        pixels = height * width
        rgb = np.frombuffer(data, np.uint8, 3 * pixels, _HEADER.size).reshape(height, width, 3)
        matte = None
        if matted:
            matte = np.frombuffer(data, np.uint8, pixels, _HEADER.size + 3 * pixels).reshape(height, width)
        return PreviewImage(t_capture_ns, rgb, matte, drawn)


@dataclass(frozen=True)
class ImageDifference:
    """Absolute difference of two images, ``rgb`` (H, W, 3) uint8, amplified by `GAIN`, and their PSNR in dB."""

    rgb: Bytes
    psnr_db: float

    @staticmethod
    def of(shown: PreviewImage, camera: PreviewImage) -> ImageDifference:
        """Compare a rendered image with a camera image, inside the matte of ``camera`` if it has one."""
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


def _fitted(image: PreviewImage, height: int, width: int) -> tuple[Bytes, Bytes | None]:
    """Colours and matte of an image, resized."""
    if image.rgb.shape[:2] == (height, width):
        return image.rgb, image.matte
    from PIL import Image

    size = (width, height)
    rgb = np.asarray(Image.fromarray(image.rgb).resize(size, Image.Resampling.BILINEAR))
    if image.matte is None:
        return rgb, None
    return rgb, np.asarray(Image.fromarray(image.matte).resize(size, Image.Resampling.BILINEAR))

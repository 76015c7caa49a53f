"""Images sent to the preview window as bytes, the window's views, and the difference of two images."""

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
"""Maximum number of bytes of one image with matte and header."""

GAIN: Final = 3
"""Factor on the displayed difference of two images, which is only a few steps of 256."""

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
        t_capture_ns: capture time of the camera frame that it shows or was rendered for.
        rgb: (H, W, 3) uint8. matte: (H, W) uint8, the subject's alpha; None without one.
        drawn: whether it is a rendered head, and not a card with text.
    """

    t_capture_ns: int
    rgb: Bytes
    matte: Bytes | None = None
    drawn: bool = False

    def parts(self) -> tuple[bytes | Bytes, ...]:
        """The image as pieces of bytes, which `read` decodes; images above `MAX_SIDE` are subsampled."""
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
    """Difference of two images: ``rgb`` (H, W, 3) uint8, times `GAIN`, and their PSNR ``psnr_db``."""

    rgb: Bytes
    psnr_db: float

    @staticmethod
    def of(shown: PreviewImage, camera: PreviewImage) -> ImageDifference:
        """Compare the avatar with the camera image, inside the matte of ``camera`` if it has one."""
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

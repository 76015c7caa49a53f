"""Segmentation of a person with MediaPipe's selfie segmenter on LiteRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes, Float32

from .litert import LiteRtModel

MATTE_SIZE = 256
"""Side of the square images that are segmented, in pixels."""


class SelfieSegmenter:
    """MediaPipe's selfie segmenter on LiteRT, for images of 256 x 256 pixels.  Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """``path`` is a ``.tflite`` file of the segmenter.  Raises UserError if it cannot be read or run."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
        self._model = LiteRtModel(content)

    def segment(self, rgb: Bytes) -> Float32:
        """Probability that a pixel shows a person, (256, 256) float32, for an RGB image (256, 256, 3) uint8."""
        import cv2

        height, width = self._model.shape[:2]
        whole = (height, width) == (MATTE_SIZE, MATTE_SIZE)
        if not whole:  # the landscape model takes 144 x 256 pixels, and MediaPipe squeezes a square image into them
            squeeze = np.diag([width / MATTE_SIZE, height / MATTE_SIZE, 1.0])
            rgb = cv2.warpPerspective(
                rgb, squeeze, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            ).astype(np.uint8, copy=False)
        (output,) = self._model(rgb.astype(np.float32) / 255.0).values()
        matte = output.reshape(height, width)
        if not whole:
            return cv2.resize(matte, (MATTE_SIZE, MATTE_SIZE), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        return matte

    def close(self) -> None:
        """Do nothing: the model is released with this object."""

"""Numbers drawn into frames as black and white squares, which survive the encoders of a camera and of the stream.

A strip has 32 squares: 24 bits of the number, the highest first, and 8 bits of a checksum.  The place of a strip is
given in fractions of the frame, so that it is found at any resolution.
``watch.js`` reads the same strips in a browser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

BITS: Final = 24
"""Bits of a number in a strip."""

SQUARES: Final = 32
"""Squares of a strip: the bits of the number and of its checksum."""

MODULUS: Final = 1 << BITS
"""Numbers are written modulo this value."""


@dataclass(frozen=True)
class Strip:
    """Place of a number in a frame: left, top, width and height as fractions of the frame, and squares in one row."""

    x: float
    y: float
    width: float
    height: float
    columns: int

    @property
    def rows(self) -> int:
        """Number of rows of squares."""
        return SQUARES // self.columns

    def edges(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixel edges of rows (rows + 1,) and columns (columns + 1,) in a frame of ``height`` x ``width`` pixels."""
        rows = np.rint(height * (self.y + self.height * np.arange(self.rows + 1) / self.rows))
        columns = np.rint(width * (self.x + self.width * np.arange(self.columns + 1) / self.columns))
        return rows.astype(int), columns.astype(int)


SENT_TIME: Final = Strip(0.0, 0.0, 1.0, 24 / 512, 32)
"""Strip of an output frame with the wall-clock time of its encoding, in tenths of a millisecond."""

SOURCE_FRAME: Final = Strip(0.0, 24 / 512, 1.0, 24 / 512, 32)
"""Strip of an output frame, below `SENT_TIME`, with the number of the camera frame that it shows."""

CAMERA_FRAME: Final = Strip(0.0, 0.0, 0.1, 1.0, 2)
"""Strip of a 4 : 3 camera frame with its number, at the left of the square that is tracked."""


def checksum(number: int) -> int:
    """Checksum (8 bits) of a number of 24 bits."""
    high, middle, low = number >> 16 & 255, number >> 8 & 255, number & 255
    return (31 * high + 17 * middle + 7 * low + 90) & 255


def write(picture: np.ndarray, strip: Strip, number: int) -> None:
    """Draw the lowest 24 bits of ``number`` into ``picture`` (H, W, 3) uint8, in place."""
    number %= MODULUS
    word = number << 8 | checksum(number)
    bits = np.array([word >> (SQUARES - 1 - n) & 1 for n in range(SQUARES)], np.uint8).reshape(strip.rows, -1)
    rows, columns = strip.edges(*picture.shape[:2])
    squares = np.repeat(np.repeat(255 * bits, np.diff(rows), axis=0), np.diff(columns), axis=1)
    picture[rows[0] : rows[-1], columns[0] : columns[-1]] = squares[..., None]


def read(picture: np.ndarray, strip: Strip) -> int | None:
    """Read the number in ``picture`` (H, W, 3) uint8; None if the checksum does not match."""
    rows, columns = strip.edges(*picture.shape[:2])
    middles = np.ix_((rows[:-1] + rows[1:]) // 2, (columns[:-1] + columns[1:]) // 2)
    word = 0
    for bit in (picture[..., 1][middles] > 127).ravel():
        word = word << 1 | int(bit)
    number = word >> 8
    return number if word & 255 == checksum(number) else None

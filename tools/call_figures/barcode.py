"""Numbers as black and white squares in a picture, which survive a camera's encoder and the stream's.

A strip has 32 squares: 24 bits of the number, the highest first, and eight of a check sum.  Strips lie in fractions of
the picture, so that they are found in one of any size.  ``watch.js`` reads the same in a browser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

BITS: Final = 24
SQUARES: Final = 32
MODULUS: Final = 1 << BITS


@dataclass(frozen=True)
class Strip:
    """Where a number stands: left and top edge, width and height as fractions of the picture, squares in a row."""

    x: float
    y: float
    width: float
    height: float
    columns: int

    @property
    def rows(self) -> int:
        return SQUARES // self.columns

    def edges(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixel edges of rows (rows + 1,) and columns (columns + 1,) in a picture."""
        rows = np.rint(height * (self.y + self.height * np.arange(self.rows + 1) / self.rows))
        columns = np.rint(width * (self.x + self.width * np.arange(self.columns + 1) / self.columns))
        return rows.astype(int), columns.astype(int)


SHOWN: Final = Strip(0.0, 0.0, 1.0, 24 / 512, 32)
"""In a picture for viewers: when it was handed to the encoder, in tenths of a millisecond of wall-clock time."""

SOURCE: Final = Strip(0.0, 24 / 512, 1.0, 24 / 512, 32)
"""Below it: the number of the camera's picture that it shows."""

FILMED: Final = Strip(0.0, 0.0, 0.1, 1.0, 2)
"""In a camera's picture of 4 : 3: its number, left of the square in the middle that is tracked."""


def check_sum(number: int) -> int:
    """Eight bits that tell a number that was read wrongly."""
    high, middle, low = number >> 16 & 255, number >> 8 & 255, number & 255
    return (31 * high + 17 * middle + 7 * low + 90) & 255


def write(picture: np.ndarray, strip: Strip, number: int) -> None:
    """Write ``number`` (its lowest 24 bits) into ``picture`` (H, W, 3) uint8."""
    number %= MODULUS
    word = number << 8 | check_sum(number)
    bits = np.array([word >> (SQUARES - 1 - n) & 1 for n in range(SQUARES)], np.uint8).reshape(strip.rows, -1)
    rows, columns = strip.edges(*picture.shape[:2])
    squares = np.repeat(np.repeat(255 * bits, np.diff(rows), axis=0), np.diff(columns), axis=1)
    picture[rows[0] : rows[-1], columns[0] : columns[-1]] = squares[..., None]


def read(picture: np.ndarray, strip: Strip) -> int | None:
    """The number in ``picture`` (H, W, 3) uint8; None where there is none that fits its check sum."""
    rows, columns = strip.edges(*picture.shape[:2])
    middles = np.ix_((rows[:-1] + rows[1:]) // 2, (columns[:-1] + columns[1:]) // 2)
    word = 0
    for bit in (picture[..., 1][middles] > 127).ravel():
        word = word << 1 | int(bit)
    number = word >> 8
    return number if word & 255 == check_sum(number) else None

"""Still images with a message (cards) for viewers while there is no head to display, and the avatar's backdrop."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Final

import numpy as np

from insta_runtime.types import Bytes, Float32

CENTRE: Final = (0.20, 0.24, 0.31)
"""Colour of the centre of the backdrop, sRGB in [0, 1]; dark, for contrast with light hair."""
EDGE: Final = (0.06, 0.07, 0.10)
"""Colour of the edge of the backdrop, sRGB in [0, 1]."""

INK: Final = (236, 240, 246)
"""Colour of outline and title of a card, 8-bit sRGB."""
FAINT: Final = (148, 160, 178)
"""Colour of the hint of a card, 8-bit sRGB."""
ACCENT: Final = (96, 190, 170)
"""Colour of the corner marks of a card, 8-bit sRGB."""


@cache
def backdrop(side: int) -> Float32:
    """Default backdrop of the avatar: a soft dark vignette, (side, side, 3) float32 sRGB in [0, 1]."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side + 0.5 / side
    distance = np.hypot((x - 0.5) * 1.1, (y - 0.42) * 0.95)[..., None]
    weight = np.clip(distance / 0.75, 0.0, 1.0) ** 1.4
    picture = (1.0 - weight) * np.array(CENTRE) + weight * np.array(EDGE)
    # A dither of half a level keeps the gradient free of bands; its seed makes a card the same each time.
    picture += (np.random.default_rng(0).random(picture.shape) - 0.5) / 255.0
    return np.asarray(picture.clip(0.0, 1.0), dtype=np.float32)


@lru_cache(maxsize=16)
def card(title: str, hint: str, side: int) -> Bytes:
    """Image with the outline of a head, a title, and a hint of up to four lines; (side, side, 3) uint8 sRGB."""
    from PIL import Image, ImageDraw, ImageFont

    scale = 2  # drawn twice as large and then reduced, because Pillow draws hard edges
    picture = Image.fromarray((backdrop(side) * 255.0 + 0.5).astype(np.uint8)).resize((side * scale, side * scale))
    draw = ImageDraw.Draw(picture)
    unit = side * scale / 512

    def at(*values: float) -> list[float]:
        return [value * unit for value in values]

    line = round(5 * unit)
    draw.rounded_rectangle(at(206, 112, 306, 242), radius=50 * unit, outline=INK, width=line)
    draw.arc(at(146, 258, 366, 430), 200, 340, fill=INK, width=line)
    for left, top, start in ((136, 76, 180), (336, 76, 270), (336, 246, 0), (136, 246, 90)):
        draw.arc(at(left, top, left + 40, top + 40), start, start + 90, fill=ACCENT, width=line)

    def write(text: str, y: float, size: float, colour: tuple[int, int, int]) -> None:
        font = ImageFont.load_default(size * unit)
        width = draw.textlength(text, font)
        if width > 472 * unit:
            font = ImageFont.load_default(size * unit * 472 * unit / width)
        draw.text((256 * unit, y * unit), text, fill=colour, font=font, anchor="mm")

    write(title, 348, 30, INK)
    for row, text in enumerate(_wrapped(hint, 54)):
        write(text, 388 + 24 * row, 17, FAINT)
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)).copy()


def _wrapped(text: str, columns: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, columns, max_lines=4, placeholder=" …")

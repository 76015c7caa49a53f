"""Adaptive render size: the side of rendered frames, chosen from measured times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

SIZES: Final = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
"""Possible sides in pixels of the rendered avatar; frames are then scaled to the side of the stream."""

SLOWER: Final = 1.15
"""Time of a frame, as a multiple of its budget, above which the next frame is rendered smaller."""

FASTER: Final = 0.8
"""Predicted time of a larger frame, as a fraction of its budget, below which the larger size is tried."""


@dataclass(frozen=True)
class RenderSize:
    """Side at which frames are rendered.

    Attributes:
        side: side in pixels.
        ms: smoothed time in ms of rendering a frame of that side; None before it is measured.
        largest: largest possible side in pixels.
    """

    side: int = 128
    ms: float | None = None
    largest: int = SIZES[-1]

    def after(self, measured_ms: float, budget_ms: float) -> RenderSize:
        """Size of the next frame, after one of this size that took ``measured_ms``.

        The time of a frame grows with its area.  The gap between ``SLOWER`` and ``FASTER`` keeps the size from
        alternating between two neighbours.
        """
        ms = measured_ms if self.ms is None else 0.7 * self.ms + 0.3 * measured_ms
        index = SIZES.index(self.side)
        if ms > SLOWER * budget_ms and index > 0:
            return self._resized(SIZES[index - 1], ms)
        if self.side < self.largest:
            larger = self._resized(SIZES[index + 1], ms)
            if larger.ms is not None and larger.ms <= FASTER * budget_ms:
                return larger
        return replace(self, ms=ms)

    def _resized(self, side: int, ms: float) -> RenderSize:
        return replace(self, side=side, ms=ms * (side / self.side) ** 2)


def largest_side(stream: int) -> int:
    """Largest render size in pixels that is useful for a stream with a side of ``stream`` pixels."""
    return max((side for side in SIZES if side <= stream), default=SIZES[0])

"""Quality tiers of the video (frame size and rate), and the choice of a tier for each viewer by its bandwidth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BITS_PER_PIXEL: Final = 0.023
"""Bits a pixel below which H.264 blurs skin so much that fewer and smaller frames look better."""
DOWN_S: Final = 2.0
"""Seconds for which a viewer's bandwidth must be too low for its tier before it gets a lower tier."""
UP_S: Final = 5.0
"""Seconds for which a viewer's bandwidth must suffice for the next higher tier before it gets that tier."""
MARGIN: Final = 1.25
"""Factor by which the bandwidth must exceed the need of a higher tier; it prevents alternating between two tiers."""
SMALLEST: Final = 64
"""Smallest side of a tier's frames in pixels."""


@dataclass(frozen=True)
class Tier:
    """Quality tier: square frames of ``size`` pixels, ``fps`` a second, with at most ``ceiling`` bit/s."""

    size: int
    fps: int
    ceiling: int

    @property
    def name(self) -> str:
        """Name of the tier, like ``512@30``."""
        return f"{self.size}@{self.fps}"

    @property
    def need(self) -> float:
        """Bitrate in bit/s above which this tier looks better than the next lower one."""
        return BITS_PER_PIXEL * self.size**2 * self.fps


def tier_ladder(size: int, fps: int, bitrate: int) -> tuple[Tier, ...]:
    """All tiers, from the best one (``size``, ``fps``, at most ``bitrate`` bit/s) down.

    For 512 at 30 they are 512@30, 512@20, 384@20 and 256@15; for 512 at 60 the same below 512@60.  The ceiling is
    proportional to the area of a frame, and the same at a lower frame rate, as the frames then differ more.
    """
    steady = min(fps, 30)
    slow, half = max(1, round(steady * 2 / 3)), max(1, steady // 2)
    steps = [(size, fps), (size, steady), (size, slow), (_even(size * 3 // 4), slow), (_even(size // 2), half)]
    return tuple(Tier(side, rate, bitrate * side**2 // size**2) for side, rate in dict.fromkeys(steps))


def _even(side: int) -> int:
    return max(SMALLEST, side - side % 2)


class TierSelector:
    """Chooses the tier of one viewer by its bandwidth, with hysteresis; times are seconds of any monotonic clock.

    Attributes:
        index: index of the chosen tier; 0 is the best.
    """

    def __init__(self) -> None:
        self.index = 0
        self._too_low_since: float | None = None
        self._sufficient_since: float | None = None

    def update(self, bitrate: float, needs: list[float], now: float) -> int:
        """Index of the tier at ``now`` for a viewer that can receive ``bitrate`` bit/s.

        ``needs`` is the bitrate that each tier needs.  The viewer moves down by as many tiers as necessary, up by one.
        """
        too_low = bitrate < needs[self.index] and self.index < len(needs) - 1
        sufficient = not too_low and self.index > 0 and bitrate >= MARGIN * needs[self.index - 1]
        self._too_low_since = _since(self._too_low_since, too_low, now)
        self._sufficient_since = _since(self._sufficient_since, sufficient, now)
        if self._too_low_since is not None and now - self._too_low_since >= DOWN_S:
            fits = (i for i in range(self.index + 1, len(needs)) if bitrate >= needs[i])
            self.index, self._too_low_since = next(fits, len(needs) - 1), None
        elif self._sufficient_since is not None and now - self._sufficient_since >= UP_S:
            self.index, self._sufficient_since = self.index - 1, None
        return self.index


def _since(began: float | None, holds: bool, now: float) -> float | None:
    """Time since which a condition holds: ``began``, or ``now`` if it begins to hold; None if it does not hold."""
    if not holds:
        return None
    return now if began is None else began

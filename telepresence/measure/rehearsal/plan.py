"""What a rehearsal keeps of a call: the moments that are measured, and the pictures that come after each.  Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Final

NEXT_S: Final = 2.0
"""An avatar is measured on what comes in so many seconds after the moment at which it was shown."""
HEADLINES_S: Final = (10.0, 60.0)
"""Moments of a call whose figures have names; every picture after them is measured on."""
FIRST_S: Final = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 15.0)
LATER_S: Final = 5.0
"""A curve has a point at each of `FIRST_S`, then every so many seconds ..."""
LATER_POINTS: Final = 32
"""... but not more often than so many times in a call, however long."""
SPACING_S: Final = 0.125
"""Seconds between pictures that are measured on, except after the headlines: closer ones look alike."""
FADES: Final = 24
"""Publications, spread over the call, whose effect on the picture is looked at."""
FIRST_MINUTE_S: Final = 60.0


@dataclass(frozen=True)
class Plan:
    """For a call of ``seconds``: the ``moments`` of its curve, ascending, all in seconds of the call.

    ``early`` is when the first pictures, those that must not be forgotten, have been seen: after a minute, in a short
    call after half of it.
    """

    seconds: float
    moments: tuple[float, ...]
    early: float

    @staticmethod
    def of(seconds: float) -> Plan:
        step = max(LATER_S, seconds / LATER_POINTS)
        later = takewhile(lambda moment: moment < seconds, (FIRST_S[-1] + n * step for n in count(1)))
        early = min(FIRST_MINUTE_S, seconds / 2.0)
        wanted = {*FIRST_S, *HEADLINES_S, *later, early, seconds}
        return Plan(seconds, tuple(sorted(moment for moment in wanted if moment <= seconds)), early)

    def wants_weights(self, since: float, until: float) -> bool:
        """Whether weights that are the newest from ``since`` until just before ``until`` will be measured."""
        first = bisect_left(self.moments, since)
        return first < len(self.moments) and self.moments[first] < until

    def wants_picture(self, at: float, kept: float) -> bool:
        """Whether a picture captured ``at`` will be measured on; the last one kept was captured at ``kept``."""
        after = bisect_left(self.moments, at) - 1  # the last moment before it
        if after < 0 or at > self.moments[after] + NEXT_S:
            return False
        headline = any(moment < at <= moment + NEXT_S for moment in HEADLINES_S)
        return headline or at - kept >= SPACING_S

    @property
    def fade_every(self) -> float:
        """Seconds between publications that are looked at."""
        return self.seconds / FADES

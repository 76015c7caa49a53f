"""Moments of a rehearsed call at which the avatar is measured, and the observations and snapshots that this needs.

Pure functions of the duration of the call.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Final

NEXT_S: Final = 2.0
"""Seconds after a moment whose observations the weights of that moment are measured on."""
HEADLINES_S: Final = (10.0, 60.0)
"""Moments in seconds that have figures of their own; every observation in the `NEXT_S` after them is measured on."""
FIRST_S: Final = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 15.0)
"""Moments in seconds at the beginning of a call at which the likeness curve has a point."""
LATER_S: Final = 5.0
"""Seconds between points of the likeness curve after `FIRST_S`, at least."""
LATER_POINTS: Final = 32
"""Maximum number of points of the likeness curve after `FIRST_S`, however long the call is."""
SPACING_S: Final = 0.125
"""Minimum seconds between two observations that are measured on, except after `HEADLINES_S`; closer ones look alike."""
MAX_CROSSFADES: Final = 24
"""Number of publications, spread over a call, whose visibility in the video is measured."""
FIRST_MINUTE_S: Final = 60.0
"""Seconds at the beginning of a call whose observations forgetting is measured on."""


@dataclass(frozen=True)
class MeasurementPlan:
    """Moments at which the avatar of a rehearsed call is measured, in seconds of the call.

    Attributes:
        seconds: duration of the call.
        moments: moments of the likeness curve, ascending.
        early: end of the part that forgetting is measured on: a minute, or half of a call shorter than two.
    """

    seconds: float
    moments: tuple[float, ...]
    early: float

    @staticmethod
    def of(seconds: float) -> MeasurementPlan:
        """Plan for a call of ``seconds``."""
        step = max(LATER_S, seconds / LATER_POINTS)
        later = takewhile(lambda moment: moment < seconds, (FIRST_S[-1] + n * step for n in count(1)))
        early = min(FIRST_MINUTE_S, seconds / 2.0)
        wanted = {*FIRST_S, *HEADLINES_S, *later, early, seconds}
        return MeasurementPlan(seconds, tuple(sorted(moment for moment in wanted if moment <= seconds)), early)

    def wants_weights(self, since: float, until: float) -> bool:
        """Whether weights that are the newest from ``since`` until just before ``until`` will be measured."""
        first = bisect_left(self.moments, since)
        return first < len(self.moments) and self.moments[first] < until

    def wants_observation(self, at: float, previous: float) -> bool:
        """Whether an observation captured ``at`` will be measured on; ``previous`` is when the last one kept was."""
        after = bisect_left(self.moments, at) - 1  # index of the last moment before it
        if after < 0 or at > self.moments[after] + NEXT_S:
            return False
        headline = any(moment < at <= moment + NEXT_S for moment in HEADLINES_S)
        return headline or at - previous >= SPACING_S

    @property
    def crossfade_interval_s(self) -> float:
        """Seconds between two publications whose visibility is measured."""
        return self.seconds / MAX_CROSSFADES

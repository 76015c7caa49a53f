"""When the next picture leaves: as soon as there is a new one, and the declared number a second."""

from __future__ import annotations

EARLY = 0.05  # part of a period by which a fresh picture may pull the windows forward
LATE = 0.75  # part of a window after which nothing fresh is waited for: no gap is longer than 1.75 periods


class Pacer:
    """Divides time into windows of one frame period and grants one picture to each.

    Inside its window a picture leaves the moment a fresh one is there; if none comes, the newest is repeated late in
    the window.  A fresh picture just before its window moves the windows forward to itself, so that they lock onto a
    source that is a little faster than declared; otherwise each of its pictures would wait.  So a source at about the
    declared rate is hardly held back, whatever its phase and jitter, a slow one is filled up, a fast one is thinned to
    its newest, and the average stays within 5 % of the declared rate, which x264's rate control assumes.

    Times are seconds of any monotonic clock.
    """

    def __init__(self, fps: float, now: float) -> None:
        self.period = 1.0 / fps
        self._opens = now  # start of the window of the next picture

    def wait(self, fresh: bool, now: float) -> float:
        """Seconds until the next picture may leave (0: now), given whether an unsent picture is there."""
        due = self._opens - EARLY * self.period if fresh else self._opens + LATE * self.period
        return max(0.0, due - now)

    def sent(self, now: float) -> None:
        """A picture left at ``now``.  After a stall of more than one window the lost ones are not made up for."""
        self._opens = max(min(now, self._opens) + self.period, now - self.period)

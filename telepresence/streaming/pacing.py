"""When the next picture leaves: as soon as there is a new one, yet exactly the declared number a second."""

from __future__ import annotations


class Pacer:
    """Divides time into windows of one frame period and grants one picture to each.

    Inside its window a picture leaves the moment a fresh one is there; if none comes, the newest is repeated at the
    window's end.  So a source at the declared rate is never held back, whatever its phase and jitter, a slow one is
    filled up, a fast one is thinned to its newest, and the average is the declared rate: what x264's rate control
    and the viewers' jitter buffers assume.  Times are seconds of any monotonic clock.
    """

    def __init__(self, fps: float, now: float) -> None:
        self.period = 1.0 / fps
        self._opens = now  # start of the window of the next picture

    def wait(self, fresh: bool, now: float) -> float:
        """Seconds until the next picture may leave (0: now), given whether an unsent picture is there."""
        return max(0.0, (self._opens if fresh else self._opens + self.period) - now)

    def sent(self, now: float) -> None:
        """A picture left at ``now``.  After a stall of more than one window the lost ones are not made up for."""
        self._opens = max(self._opens + self.period, now - self.period)

"""Monotonic clock of the daemon, validation of capture times, and loops of a fixed rate."""

from __future__ import annotations

import threading
import time

from telepresence.runtime.failure_policy import OLD_S


def now_ns() -> int:
    """Monotonic time in nanoseconds: the clock of every capture time in this process."""
    return time.monotonic_ns()


class CaptureClock:
    """Replaces capture times that go back, lie in the future or are older than `OLD_S` by the present.

    A wrong capture time would make every latency and speed that is computed from it wrong.

    Attributes:
        wrong: number of capture times that were replaced.
    """

    def __init__(self) -> None:
        self.wrong = 0
        self._last = -1

    def stamp(self, t_capture_ns: int, now: int) -> int:
        """``t_capture_ns``, or a valid time in its place; both arguments are monotonic nanoseconds."""
        if not (self._last < t_capture_ns <= now and now - t_capture_ns <= OLD_S * 1e9):
            self.wrong += 1
            t_capture_ns = max(now, self._last + 1)
        self._last = t_capture_ns
        return t_capture_ns


class LoopTimer:
    """Keeps a loop at ``fps`` rounds per second without drift.

    A late round is not made up for.  With ``early`` above 0, lateness up to that many periods lets the next rounds come
    earlier by as much, for a loop whose work arrives unevenly and should be done at once.

    Attributes:
        period: seconds between two rounds.
    """

    def __init__(self, fps: float, early: float = 0.0) -> None:
        self.period = 1.0 / fps
        self._early = early * self.period
        self._due = time.monotonic()

    def wait(self, stop: threading.Event) -> bool:
        """Sleep until the next round is due; False once ``stop`` is set."""
        now = time.monotonic()
        self._due = max(self._due + self.period, now - self._early)
        return not stop.wait(max(0.0, self._due - now))

    def skip(self) -> None:
        """Do not count the last round, which had nothing to do: the next one need not wait for its time."""
        self._due -= self.period

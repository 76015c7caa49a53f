"""The one clock of the daemon, and loops that keep a rate."""

from __future__ import annotations

import threading
import time

from telepresence.runtime.policy import OLD_S


def now_ns() -> int:
    """Monotonic time in nanoseconds; every capture time in the process is on this clock."""
    return time.monotonic_ns()


class CaptureClock:
    """Holds a camera to its promise that capture times grow and are of now.

    A time that goes back, lies ahead or is older than `OLD_S` is replaced by the present: what is counted from
    it (latency, speeds) would be wrong for as long as the camera's clock is.
    """

    def __init__(self) -> None:
        self.wrong = 0
        self._last = -1

    def stamp(self, t_capture_ns: int, now: int) -> int:
        """The time of a picture that says it was taken at ``t_capture_ns``, in nanoseconds like ``now``."""
        if not (self._last < t_capture_ns <= now and now - t_capture_ns <= OLD_S * 1e9):
            self.wrong += 1
            t_capture_ns = max(now, self._last + 1)
        self._last = t_capture_ns
        return t_capture_ns


class Ratekeeper:
    """Hold a loop to ``fps`` rounds a second without drift.

    ``wait(stop)`` sleeps until the next round is due and returns False once the event ``stop`` is set.  A late round is
    not made up for; but ``early`` periods of lateness let the next ones come as much before their time, for what
    comes unevenly and is to be dealt with at once.
    """

    def __init__(self, fps: float, early: float = 0.0) -> None:
        self.period = 1.0 / fps
        self._early = early * self.period
        self._due = time.monotonic()

    def wait(self, stop: threading.Event) -> bool:
        now = time.monotonic()
        self._due = max(self._due + self.period, now - self._early)
        return not stop.wait(max(0.0, self._due - now))

    def forgive(self) -> None:
        """The round came to nothing: the next one need not wait for its time."""
        self._due -= self.period

"""The one clock of the daemon, and loops that keep a rate."""

from __future__ import annotations

import threading
import time


def now_ns() -> int:
    """Monotonic time in nanoseconds; every capture time in the process is on this clock."""
    return time.monotonic_ns()


class Ratekeeper:
    """Hold a loop to ``fps`` rounds a second without drift; a late round is not made up for.

    ``wait(stop)`` sleeps until the next round is due and returns False once the event ``stop`` is set.
    """

    def __init__(self, fps: float) -> None:
        self.period = 1.0 / fps
        self._due = time.monotonic()

    def wait(self, stop: threading.Event) -> bool:
        now = time.monotonic()
        self._due = max(self._due + self.period, now)
        return not stop.wait(self._due - now)

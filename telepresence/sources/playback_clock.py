"""Clock for recorded frames that are played in real time."""

from __future__ import annotations

import math
import time


class PlaybackClock:
    """Numbers frames at ``fps`` from the first call of `wait` on; late readers skip frames, so that the pace holds."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._start: float | None = None
        self._last = -1

    def wait(self, timeout: float) -> tuple[int, int] | None:
        """Wait for the next frame; returns its number and due time (monotonic ns), or None after ``timeout`` seconds.

        Numbers and times increase; numbers whose time passed between two calls are skipped.
        """
        now = time.monotonic()
        if self._start is None:
            self._start = now
        number = max(self._last + 1, math.floor((now - self._start) * self.fps))
        due = self._start + number / self.fps
        if due - now > timeout:
            time.sleep(timeout)
            return None
        time.sleep(max(due - now, 0.0))
        self._last = number
        return number, round(due * 1e9)

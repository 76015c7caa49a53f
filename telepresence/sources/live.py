"""When the pictures of something that is played as if live are due."""

from __future__ import annotations

import math
import time


class LivePace:
    """Numbers pictures at ``fps`` from the first call of `wait` on; who is late loses pictures, never pace."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._start: float | None = None
        self._last = -1

    def wait(self, timeout: float) -> tuple[int, int] | None:
        """Number and due time (monotonic ns) of the next picture, once it is due; None after ``timeout`` seconds.

        Numbers and times grow; a number is left out where nobody asked in time.
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

"""Frame pacing: decides when the next frame of a stream is sent, at a constant average rate with low delay."""

from __future__ import annotations

from typing import Final

EARLY: Final = 0.05
"""Part of a frame period by which a new frame may be sent before its window."""
LATE: Final = 0.75
"""Part of a window after which the last frame is repeated, so that no gap is longer than 1.75 periods."""


class FramePacer:
    """Divides time into windows of one frame period and allows one frame in each.

    A new frame is sent as soon as it arrives in its window; if none arrives, the last one is repeated late in the
    window.  A new frame shortly before its window moves the windows forward: otherwise every frame of a source that is
    a little faster than the declared rate would wait.  So a source of about the declared rate is hardly delayed,
    whatever its phase and jitter; frames of a slow source are repeated, those of a fast one dropped; and the average
    stays within 5 % of the declared rate, which x264's rate control relies on.

    Times are seconds of any monotonic clock.
    """

    def __init__(self, fps: float, now: float) -> None:
        """``fps``: frames a second; the first window begins at ``now``."""
        self.period = 1.0 / fps
        self._window_start = now

    def wait(self, is_new: bool, now: float) -> float:
        """Seconds until the next frame may be sent (0.0: now); ``is_new``: a frame that was not sent yet is there."""
        due = self._window_start - EARLY * self.period if is_new else self._window_start + LATE * self.period
        return max(0.0, due - now)

    def on_sent(self, now: float) -> None:
        """Advance the window after a frame was sent at ``now``.  Windows missed in a longer stall are skipped."""
        self._window_start = max(min(now, self._window_start) + self.period, now - self.period)

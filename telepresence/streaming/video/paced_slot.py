"""Slot of size one between renderer and encoder, from which the newest frame is taken at a constant rate."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from telepresence.runtime.frames import OutputFrame
from telepresence.streaming.video.frame_pacer import FramePacer


@dataclass(frozen=True)
class PacedFrame:
    """A frame taken from the slot ``at`` (monotonic seconds); ``fresh``: new, else the last frame repeated."""

    frame: OutputFrame
    fresh: bool
    at: float


class PacedSlot:
    """Holds the newest frame and returns it ``fps`` times a second, repeated where there is no newer one.

    `put` and `close` may be called by any thread, `next` by one.
    """

    def __init__(self, fps: float, first: OutputFrame) -> None:
        """``first`` is returned until `put` is called."""
        self._condition = threading.Condition()
        self._fps = fps
        self._pacer: FramePacer | None = None  # made at the first call of `next`, where time begins
        self._newest, self._fresh = first, True
        self._open = True

    def put(self, frame: OutputFrame) -> None:
        """Replace the frame that is returned next; never waits for the reader."""
        with self._condition:
            self._newest, self._fresh = frame, True
            self._condition.notify()

    def next(self) -> PacedFrame | None:
        """Wait until the next frame is due, and return it; None once the slot is closed."""
        with self._condition:
            if self._pacer is None:
                self._pacer = FramePacer(self._fps, time.monotonic())
            while self._open and (wait := self._pacer.wait(self._fresh, time.monotonic())) > 0.0:
                self._condition.wait(wait)
            if not self._open:
                return None
            paced = PacedFrame(self._newest, self._fresh, time.monotonic())
            self._fresh = False
        self._pacer.on_sent(paced.at)
        return paced

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._open

    def close(self) -> None:
        """Make `next` return None from now on; may be called twice."""
        with self._condition:
            self._open = False
            self._condition.notify()

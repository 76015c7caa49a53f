"""The slot between who draws and who encodes: the newest picture leaves at the declared rate."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from telepresence.runtime.frames import ShownFrame
from telepresence.streaming.video.pacing import Pacer


@dataclass(frozen=True)
class Departure:
    """A picture that leaves at ``at`` (monotonic seconds), and whether it is new or the last one once more."""

    picture: ShownFrame
    fresh: bool
    at: float


class PacedSlot:
    """Holds the newest picture and hands it on ``fps`` times a second, repeated where there is no newer one.

    `put` and `close` may be called by any thread, `next` by one.
    """

    def __init__(self, fps: float, first: ShownFrame) -> None:
        self._condition = threading.Condition()
        self._fps = fps
        self._pacer: Pacer | None = None  # of whoever takes pictures; time begins with the first
        self._newest, self._fresh = first, True
        self._open = True

    def put(self, frame: ShownFrame) -> None:
        """Replace the picture that leaves next; never waits for who takes it."""
        with self._condition:
            self._newest, self._fresh = frame, True
            self._condition.notify()

    def next(self) -> Departure | None:
        """The next picture, once it is due; None once the slot is closed."""
        with self._condition:
            if self._pacer is None:
                self._pacer = Pacer(self._fps, time.monotonic())
            while self._open and (wait := self._pacer.wait(self._fresh, time.monotonic())) > 0.0:
                self._condition.wait(wait)
            if not self._open:
                return None
            departure = Departure(self._newest, self._fresh, time.monotonic())
            self._fresh = False
        self._pacer.sent(departure.at)
        return departure

    @property
    def closed(self) -> bool:
        return not self._open

    def close(self) -> None:
        """Nothing leaves any more; may be called twice."""
        with self._condition:
            self._open = False
            self._condition.notify()

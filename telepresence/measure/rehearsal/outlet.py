"""Takes pictures as the encoder does, at the declared rate, and notes when: the stand-in for server and network."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable

from telepresence.display.cards import card
from telepresence.runtime.frames import OutputFrame
from telepresence.runtime.policy import Health
from telepresence.streaming import StreamSettings, StreamStats
from telepresence.streaming.video.paced_slot import PacedSlot
from telepresence.streaming.video.stats import StreamMeter


class RehearsalOutlet:
    """An `FrameSink` with one viewer, who never looks away.

    ``seen`` hears of every picture that is shown, in the thread that shows it.

    Attributes:
        times: monotonic seconds at which a picture was handed over, in order. fresh: 1 for a new one, 0 for a repeat.
    """

    def __init__(self, settings: StreamSettings, seen: Callable[[OutputFrame], None]) -> None:
        self.times, self.fresh = array("d"), array("b")
        self._seen = seen
        self._meter = StreamMeter()
        blank = card("", "", settings.size)
        self._slot = PacedSlot(settings.fps, OutputFrame(0, time.monotonic_ns(), blank))
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)

    @property
    def address(self) -> str:
        return "nowhere: this is a rehearsal"

    @property
    def viewers(self) -> int:
        return 1

    @property
    def watched(self) -> bool:
        return True

    def supervise(self, now: float) -> str | None:  # noqa: ARG002 - it has nothing that hangs
        return None

    def health(self, now: float) -> dict[str, Health]:  # noqa: ARG002
        return {}

    def start(self) -> None:
        self._thread.start()

    def push_frame(self, frame: OutputFrame) -> None:
        self._seen(frame)
        self._slot.put(frame)

    def stream_stats(self) -> StreamStats:
        return self._meter.read(time.monotonic())

    def stop(self) -> None:
        self._slot.close()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    def _run(self) -> None:
        while (departure := self._slot.next()) is not None:
            self.times.append(departure.at)
            self.fresh.append(departure.fresh)
            self._meter.issued(departure.at)

"""Frame sink of a rehearsed call: takes frames at the declared rate, like the encoder, and records when."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable

from telepresence.display.cards import card
from telepresence.runtime.failure_policy import Health
from telepresence.runtime.frames import OutputFrame
from telepresence.streaming import StreamSettings, StreamStats
from telepresence.streaming.video.paced_slot import PacedSlot
from telepresence.streaming.video.stats import StreamMeter


class RehearsalSink:
    """A `FrameSink` in place of the media server, with one permanent viewer and no network.

    Attributes:
        times: monotonic seconds at which frames were taken for encoding, in order.
        fresh: for each of ``times``, 1 for a new frame and 0 for a repeated one.
    """

    def __init__(self, settings: StreamSettings, on_frame: Callable[[OutputFrame], None]) -> None:
        """``on_frame`` is called with every finished frame, in the thread that calls `push_frame`."""
        self.times, self.fresh = array("d"), array("b")
        self._on_frame = on_frame
        self._meter = StreamMeter()
        blank = card("", "", settings.size)
        self._slot = PacedSlot(settings.fps, OutputFrame(0, time.monotonic_ns(), blank))
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)

    @property
    def address(self) -> str:
        """Text in place of the server's URL."""
        return "none: this is a rehearsal"

    @property
    def viewers(self) -> int:
        """Number of viewers, always 1."""
        return 1

    @property
    def watched(self) -> bool:
        """Whether frames are sent to a viewer, always True."""
        return True

    def supervise(self, now: float) -> str | None:  # noqa: ARG002 - it has no part that can hang
        """Nothing to restart; returns None."""
        return None

    def health(self, now: float) -> dict[str, Health]:  # noqa: ARG002
        """Health of its stages, of which there are none."""
        return {}

    def start(self) -> None:
        """Start to take frames at the declared rate."""
        self._thread.start()

    def push_frame(self, frame: OutputFrame) -> None:
        """Accept a finished frame; it replaces one that was not taken yet."""
        self._on_frame(frame)
        self._slot.put(frame)

    def stream_stats(self) -> StreamStats:
        """Frame rate over the last seconds."""
        return self._meter.read(time.monotonic())

    def stop(self) -> None:
        """Stop the thread; may be called more than once."""
        self._slot.close()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    def _run(self) -> None:
        while (paced := self._slot.next()) is not None:
            self.times.append(paced.at)
            self.fresh.append(paced.fresh)
            self._meter.count_sent(paced.at)

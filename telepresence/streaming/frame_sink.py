"""Interface of the main destination of rendered frames."""

from __future__ import annotations

from typing import Protocol

from telepresence.runtime.failure_policy import Health
from telepresence.runtime.frames import OutputFrame
from telepresence.streaming.video.stats import StreamStats


class FrameSink(Protocol):
    """Main destination of rendered frames: `MediaServer`, or its replacement in a rehearsal.

    Every method may be called by any thread.
    """

    @property
    def address(self) -> str:
        """URL that a user opens in a browser."""

    @property
    def viewers(self) -> int:
        """Number of connected viewers."""

    @property
    def watched(self) -> bool:
        """Whether frames are sent to any viewer; one whose connection is being made counts."""

    def start(self) -> None:
        """Start to accept frames and viewers.  UserError if that is not possible."""

    def supervise(self, now: float) -> str | None:
        """Restart parts that hang; returns an error message if that is impossible.  ``now``: monotonic seconds."""

    def health(self, now: float) -> dict[str, Health]:
        """Health of each stage of the sink, by name.  ``now``: monotonic seconds."""

    def push_frame(self, frame: OutputFrame) -> None:
        """Make ``frame`` the newest frame; never waits."""

    def stream_stats(self) -> StreamStats:
        """Statistics of the stream over the last two seconds."""

    def stop(self) -> None:
        """End all threads of the sink; may be called twice."""

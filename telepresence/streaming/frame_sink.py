"""Where finished pictures go."""

from __future__ import annotations

from typing import Protocol

from telepresence.runtime.frames import ShownFrame
from telepresence.runtime.policy import Health
from telepresence.streaming.video.stats import StreamStats


class Outlet(Protocol):
    """What the daemon shows its pictures to: `MediaServer`, or what stands in for it in a rehearsal.

    ``address`` is what a user opens, ``viewers`` how many watch, ``watched`` whether pictures go to
    anybody (a viewer that is just coming, a recorder).  ``show`` never waits; any thread may call it.  ``watch``
    restarts what hangs, and gives the line that says why it cannot; ``health`` tells how each of its stages is.
    """

    @property
    def address(self) -> str: ...

    @property
    def viewers(self) -> int: ...

    @property
    def watched(self) -> bool: ...

    def start(self) -> None: ...

    def watch(self, now: float) -> str | None: ...

    def health(self, now: float) -> dict[str, Health]: ...

    def show(self, frame: ShownFrame) -> None: ...

    def stream_stats(self) -> StreamStats: ...

    def stop(self) -> None: ...

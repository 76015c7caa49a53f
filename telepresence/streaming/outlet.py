"""Where finished pictures go."""

from __future__ import annotations

from typing import Protocol

from telepresence.frames import ShownFrame
from telepresence.streaming.stats import StreamStats


class Outlet(Protocol):
    """What the daemon shows its pictures to: `MediaServer`, or what stands in for it in a rehearsal.

    ``address`` is what a user opens, ``viewers`` how many watch.  ``show`` never waits; any thread may call it.
    """

    @property
    def address(self) -> str: ...

    @property
    def viewers(self) -> int: ...

    def start(self) -> None: ...

    def show(self, frame: ShownFrame) -> None: ...

    def stream_stats(self) -> StreamStats: ...

    def stop(self) -> None: ...

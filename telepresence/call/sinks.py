"""Where the pictures of a call go: to viewers over the network, and on this machine to a window, a file, a camera."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from telepresence.outputs import PreviewWindow

if TYPE_CHECKING:
    from telepresence.runtime.frames import ShownFrame, TrackedFrame
    from telepresence.runtime.policy import Health
    from telepresence.streaming import Outlet, StreamStats

FIGURES_S: Final = 0.25
"""Seconds between the figures that the preview shows."""


class Local(Protocol):
    """Somewhere else on this machine: `Recorder`, `VirtualCamera`.

    ``open``: it takes pictures now.  ``show`` never waits; ``stop`` may be called twice, and without a start.
    """

    @property
    def open(self) -> bool: ...

    def start(self) -> None: ...

    def show(self, frame: ShownFrame) -> None: ...

    def stop(self) -> None: ...


class Outlets:
    """Hands every finished picture to all who take them; none waits for another, nor makes the caller wait.

    ``server`` is there in every call, the others only where they were asked for.
    """

    def __init__(self, server: Outlet, preview: PreviewWindow | None = None, others: Sequence[Local] = ()) -> None:
        self.server, self.preview, self.others = server, preview, others
        self._told = 0.0

    def start(self) -> None:
        """Open what is local, and listen.  UserError if a file cannot be written, or the server not be had."""
        for other in self.others:
            other.start()
        self.server.start()
        if self.preview is not None:
            self.preview.start()

    @property
    def address(self) -> str:
        """What a user opens; that of the server."""
        return self.server.address

    @property
    def viewers(self) -> int:
        """How many peers watch."""
        return self.server.viewers

    @property
    def watched(self) -> bool:
        """Whether anybody sees the pictures."""
        shown = self.preview is not None and self.preview.open
        return self.server.watched or shown or any(other.open for other in self.others)

    def show(self, frame: ShownFrame) -> None:
        """Make ``frame`` the newest picture everywhere; belongs to the render thread."""
        self.server.show(frame)
        if self.preview is not None:
            self.preview.show(frame)
        for other in self.others:
            other.show(frame)

    def see(self, tracked: TrackedFrame) -> None:
        """``tracked`` is what the camera sees; belongs to the tracking thread."""
        if self.preview is not None:
            self.preview.see(tracked)

    def tell(self, now: float, status: Callable[[], Mapping[str, Any]]) -> None:
        """Let those who show figures have the newest; belongs to the supervisor.  ``now``: monotonic seconds."""
        if self.preview is not None and self.preview.open and now - self._told >= FIGURES_S:
            self._told = now
            self.preview.tell(status())

    def watch(self, now: float) -> str | None:
        """Restart what hangs; the line that says why it cannot.  ``now``: monotonic seconds."""
        return self.server.watch(now)

    def health(self, now: float) -> dict[str, Health]:
        """How the stages of the outlets are."""
        return self.server.health(now)

    def stream_stats(self) -> StreamStats:
        """Figures of what the viewers get."""
        return self.server.stream_stats()

    def stop(self) -> None:
        """End all of them; may be called twice, and after a failed start."""
        if self.preview is not None:
            self.preview.stop()
        self.server.stop()
        for other in self.others:
            other.stop()

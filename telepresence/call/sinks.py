"""Destinations of rendered frames: the media server, and on this machine a window, a recording, a virtual camera."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from telepresence.outputs import PreviewWindow
from telepresence.runtime.ownership import any_thread, called_by, owned_by

if TYPE_CHECKING:
    from telepresence.runtime.failure_policy import Health
    from telepresence.runtime.frames import OutputFrame, TrackedFrame
    from telepresence.streaming import FrameSink, StreamStats

STATUS_S: Final = 0.25
"""Seconds between two updates of the status that the preview window displays."""


class LocalFrameSink(Protocol):
    """Destination of rendered frames on this machine: `Recorder`, `VirtualCamera`."""

    @property
    def open(self) -> bool:
        """Whether the sink accepts frames now."""

    def start(self) -> None:
        """Start to accept frames.  UserError if that is not possible."""

    def push_frame(self, frame: OutputFrame) -> None:
        """Make ``frame`` the newest frame; never waits."""

    def stop(self) -> None:
        """End the sink; may be called twice, and without a start."""


@owned_by("supervise")
class FrameSinks:
    """All destinations of rendered frames.  A slow destination delays neither the others nor the caller."""

    def __init__(
        self, server: FrameSink, preview: PreviewWindow | None = None, local: Sequence[LocalFrameSink] = ()
    ) -> None:
        """``server`` exists in every call; ``preview`` and ``local`` only if the user asked for them."""
        self.server, self.preview, self.local = server, preview, local
        self._status_at = 0.0

    def start(self) -> None:
        """Start all sinks.  UserError if a file cannot be written, or the server cannot listen."""
        for sink in self.local:
            sink.start()
        self.server.start()
        if self.preview is not None:
            self.preview.start()

    @property
    @any_thread
    def address(self) -> str:
        """URL of the page of the server."""
        return self.server.address

    @property
    @any_thread
    def viewers(self) -> int:
        """Number of connected viewers."""
        return self.server.viewers

    @property
    @any_thread
    def watched(self) -> bool:
        """Whether any sink uses frames now."""
        preview = self.preview is not None and self.preview.open
        return self.server.watched or preview or any(sink.open for sink in self.local)

    @called_by("render")
    def push_frame(self, frame: OutputFrame) -> None:
        """Make ``frame`` the newest frame of every sink."""
        self.server.push_frame(frame)
        if self.preview is not None:
            self.preview.push_frame(frame)
        for sink in self.local:
            sink.push_frame(frame)

    @called_by("track")
    def push_camera_frame(self, tracked: TrackedFrame) -> None:
        """Display the tracked crop in the preview window."""
        if self.preview is not None:
            self.preview.push_camera_frame(tracked)

    def push_status(self, now: float, status: Callable[[], Mapping[str, Any]]) -> None:
        """Update the status in the preview window, if it is due at monotonic second ``now``."""
        if self.preview is not None and self.preview.open and now - self._status_at >= STATUS_S:
            self._status_at = now
            self.preview.push_status(status())

    def supervise(self, now: float) -> str | None:
        """Restart parts of the server that hang; an error message if it cannot go on.  ``now``: monotonic seconds."""
        return self.server.supervise(now)

    @any_thread
    def health(self, now: float) -> dict[str, Health]:
        """Health of each stage of the server at monotonic second ``now``."""
        return self.server.health(now)

    @any_thread
    def stream_stats(self) -> StreamStats:
        """Statistics of the stream to the viewers."""
        return self.server.stream_stats()

    @any_thread
    def stop(self) -> None:
        """End all sinks; may be called twice, and after a failed start."""
        if self.preview is not None:
            self.preview.stop()
        self.server.stop()
        for sink in self.local:
            sink.stop()

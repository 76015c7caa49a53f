"""Sinks of rendered frames: the media server, the preview window, a recording and a virtual camera."""

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
        """Start accepting frames.  UserError if the file or device cannot be opened."""

    def push_frame(self, frame: OutputFrame) -> None:
        """Replace the newest frame by ``frame`` and return at once; a slow sink skips frames."""

    def stop(self) -> None:
        """Stop the sink; may be called twice, and without a start."""


@owned_by("supervise")
class FrameSinks:
    """All sinks of rendered frames.  A slow sink delays neither the others nor the caller."""

    def __init__(
        self, server: FrameSink, preview: PreviewWindow | None = None, local: Sequence[LocalFrameSink] = ()
    ) -> None:
        """``server`` sends frames to viewers; ``preview`` and ``local`` are the sinks on this computer, if enabled."""
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
        """URL of the web page that the server serves."""
        return self.server.address

    @property
    @any_thread
    def viewers(self) -> int:
        """Number of connected viewers."""
        return self.server.viewers

    @property
    @any_thread
    def watched(self) -> bool:
        """Whether any sink uses frames now: a viewer, an open preview window, or another open local sink."""
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
        """Display the tracked crop in the preview window, if there is one."""
        if self.preview is not None:
            self.preview.push_camera_frame(tracked)

    def push_status(self, now: float, status: Callable[[], Mapping[str, Any]]) -> None:
        """Display ``status()`` in the preview window, every `STATUS_S`; ``now`` is in monotonic seconds."""
        if self.preview is not None and self.preview.open and now - self._status_at >= STATUS_S:
            self._status_at = now
            self.preview.push_status(status())

    def supervise(self, now: float) -> str | None:
        """Restart hanging parts of the server.  Returns an error message if the server cannot go on, otherwise None.

        ``now`` is the monotonic second of the check.
        """
        return self.server.supervise(now)

    @any_thread
    def health(self, now: float) -> dict[str, Health]:
        """Health of each stage of the server at monotonic second ``now``."""
        return self.server.health(now)

    @any_thread
    def stream_stats(self) -> StreamStats:
        """Statistics of the stream to the viewers: frame rate, bit rate, keyframes, latency."""
        return self.server.stream_stats()

    @any_thread
    def stop(self) -> None:
        """Stop all sinks; may be called twice, and after a failed start."""
        if self.preview is not None:
            self.preview.stop()
        self.server.stop()
        for sink in self.local:
            sink.stop()

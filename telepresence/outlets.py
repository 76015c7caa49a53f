"""Where the pictures of a call go: to viewers over the network, and to a window on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from telepresence.outputs import PreviewWindow

if TYPE_CHECKING:
    from telepresence.frames import ShownFrame
    from telepresence.policy import Health
    from telepresence.streaming import Outlet, StreamStats


class Outlets:
    """Hands every finished picture to all who take them; none waits for another, nor makes the caller wait.

    ``server`` is there in every call, the others only where they were asked for.
    """

    def __init__(self, server: Outlet, preview: PreviewWindow | None = None) -> None:
        self.server, self.preview = server, preview

    def start(self) -> None:
        """Listen, then open what is local.  UserError if the server cannot be had."""
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
        return self.preview is not None or self.server.watched

    def show(self, frame: ShownFrame, hud: Callable[[], str]) -> None:
        """Make ``frame`` the newest picture everywhere; ``hud`` gives the line that the window shows with it."""
        self.server.show(frame)
        if self.preview is not None:
            self.preview.show(frame, hud())

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

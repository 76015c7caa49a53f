"""The camera of a browser: pictures that come in over the network and wait in a mailbox."""

from __future__ import annotations

from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox


class MailboxSource:
    """A source that hands out what somebody else puts into ``mailbox`` (which it does not own)."""

    def __init__(self, mailbox: Mailbox[CameraFrame], *, name: str = "browser", fps: float = 30.0) -> None:
        self.name = name
        self.fps = fps
        self._mailbox = mailbox

    def read(self, timeout: float) -> CameraFrame | None:
        return self._mailbox.get(timeout)

    def close(self) -> None:
        """Nothing to release: the mailbox belongs to whoever fills it."""

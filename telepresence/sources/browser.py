"""The source ``browser``: frames of a browser's camera, received over the network."""

from __future__ import annotations

from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox


class BrowserSource:
    """Source that reads the frames from ``mailbox``, which the WebRTC receiver fills and owns."""

    def __init__(self, mailbox: Mailbox[CameraFrame], *, name: str = "browser", fps: float = 30.0) -> None:
        self.name = name
        self.fps = fps
        self._mailbox = mailbox

    def read(self, timeout: float) -> CameraFrame | None:
        """Newest frame that was not read yet; None after ``timeout`` seconds."""
        return self._mailbox.get(timeout)

    def close(self) -> None:
        """There is nothing to release: the mailbox is owned by the WebRTC receiver."""

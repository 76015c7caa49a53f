"""Interface of the daemon that the media server calls: status, browser camera, audio and the controls of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from telepresence.runtime.audio import AudioBus
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox


class DaemonInterface:
    """Methods of the daemon that the media server calls; those of this base class ignore every command.

    Commands arrive on the network thread and must not block, except `tracking_file`, which is called on a thread of its
    own; implementations must be safe to call from any thread.

    A command that cannot be carried out raises UserError, whose text is shown to the user.

    Attributes:
        camera: frames of a browser's camera are put here.
        audio: bus that the audio for viewers comes from, and that a browser's microphone is played on.
    """

    def __init__(self, camera: Mailbox[CameraFrame] | None = None, audio: AudioBus | None = None) -> None:
        """Uses a mailbox and an audio bus of its own where none are given."""
        self.camera = camera if camera is not None else Mailbox("browser camera")
        self.audio = audio if audio is not None else AudioBus()

    def status(self) -> Mapping[str, Any]:
        """JSON object of `GET /status`; NaN and infinity are allowed."""
        return {}

    def metrics(self) -> str:
        """Prometheus text of `GET /metrics`."""
        return ""

    def on_browser_camera(self, active: bool) -> None:
        """A browser's camera has sent its first frame (``active``), or has ended."""

    def background(self) -> Mapping[str, Any]:
        """JSON object of `GET /background`: the background that is shown, and the possible ones."""
        return {}

    def choose_background(self, text: str) -> None:
        """Show the background ``text``.  UserError if it is unknown."""

    def answer_identity(self, same: bool) -> None:
        """Answer whether the face belongs to the subject of the avatar.  UserError if that is not asked now."""

    def freeze(self, on: bool) -> None:
        """Stop learning, or go on with it."""

    def mute(self, on: bool) -> None:
        """Replace the audio of the call by silence, or stop doing so."""

    def recalibrate(self) -> None:
        """Calibrate the subject again."""

    def orbit(self, yaw: float, pitch: float) -> None:
        """Turn the rendered head by these angles in radians: to the right of the image, and up."""

    def withhold(self) -> None:
        """Raise UserError unless landmarks, without camera frames, are enough to track the subject."""

    def tracking_file(self, name: str) -> bytes:
        """Content of a file with which a browser tracks faces.  KeyError if unknown, UserError if not available."""
        raise KeyError(name)

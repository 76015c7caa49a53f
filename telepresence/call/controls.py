"""Commands to a running call, from the web page or from keys pressed in the preview window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from insta_runtime.errors import UserError
from telepresence.call.subjects import NO_QUESTION
from telepresence.learning.budget import LearningMode
from telepresence.outputs import PreviewCommand
from telepresence.streaming import DaemonInterface

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from telepresence.call.camera_manager import CameraManager
    from telepresence.call.driver_receivers import DriverReceivers
    from telepresence.call.driver_selection import DriverSelector
    from telepresence.display.display import Display
    from telepresence.runtime.audio import AudioBus
    from telepresence.runtime.frames import CameraFrame
    from telepresence.runtime.mailbox import Mailbox


class CallControls(DaemonInterface):
    """Carries out the commands of the web page and of the preview window; raises UserError if one is not possible now.

    Every method may be called from any thread, and none blocks but `tracking_file`, which reads a file.
    """

    def __init__(
        self,
        cameras: CameraManager,
        drivers: DriverSelector,
        receivers: DriverReceivers,
        display: Display,
        *,
        camera: Mailbox[CameraFrame],
        audio: AudioBus,
        status: Callable[[], Mapping[str, Any]],
        metrics: Callable[[], str],
        models: Path | None,
        new_state: threading.Event,
        stopping: threading.Event,
    ) -> None:
        """``camera`` receives a browser's frames; ``status`` and ``metrics`` answer `GET /status` and `GET /metrics`.

        ``models`` is the folder of face models served to browsers; None downloads them.  ``new_state`` is set to
        request a new frame, ``stopping`` to end the call.
        """
        super().__init__(camera, audio)
        self._cameras, self._drivers, self._receivers, self._display = cameras, drivers, receivers, display
        self._status, self._metrics, self._models = status, metrics, models
        self._new_state, self._stopping = new_state, stopping

    def status(self) -> Mapping[str, Any]:
        """JSON object of `GET /status`."""
        return self._status()

    def metrics(self) -> str:
        """Prometheus text of `GET /metrics`."""
        return self._metrics()

    def on_browser_camera(self, active: bool) -> None:
        """Report that a browser has started (``active``) or stopped sending its camera."""
        self._cameras.set_browser_camera(active)

    def freeze(self, on: bool) -> None:
        """Pause (``on``) or resume learning.  UserError on resuming if the call was started without learning."""
        self._cameras.pause_learning(on)

    def withhold(self) -> None:
        """Raise UserError if a browser may not send landmarks instead of images: there is no avatar yet."""
        self._cameras.check_landmarks_only()

    def on_preview_command(self, command: PreviewCommand) -> None:
        """Carry out the command of a key pressed in the preview window."""
        match command:
            case PreviewCommand.QUIT:
                self._stopping.set()
            case PreviewCommand.MUTE:
                self.mute(not self.audio.muted)
            case PreviewCommand.CALIBRATE:
                self.recalibrate()
            case PreviewCommand.FREEZE:
                camera = self._cameras.current
                self._cameras.pause_learning(camera is None or camera.budget.mode is not LearningMode.FROZEN)

    def mute(self, on: bool) -> None:
        """Mute (``on``) or unmute the audio of the call; muted audio is replaced by silence."""
        self.audio.muted = on

    def recalibrate(self) -> None:
        """Calibrate the active driver again: the tracker, or the neutral face of the person whose states are received.

        UserError if the tracker is active and has no calibrated subject.
        """
        if self._drivers.external:
            self._receivers.recalibrate()
        else:
            self._cameras.recalibrate()

    def orbit(self, yaw: float, pitch: float) -> None:
        """Turn the rendered head by these angles in radians: to the right of the image, and up."""
        self._display.set_orbit(yaw, pitch)
        self._new_state.set()

    def answer_identity(self, same: bool) -> None:
        """Answer whether the face belongs to the avatar's subject (``same``).  UserError if that is not being asked."""
        camera = self._cameras.current
        if camera is None:
            raise UserError(NO_QUESTION)
        camera.subjects.answer(same)

    def background(self) -> dict[str, Any]:
        """JSON object of `GET /background`: the background in use, and the available choices."""
        backgrounds = self._display.backgrounds
        return {"background": str(backgrounds.chosen), "choices": backgrounds.choices}

    def choose_background(self, text: str) -> None:
        """Use the background ``text``.  UserError if it is unknown."""
        self._display.backgrounds.choose(text)
        self._new_state.set()

    def tracking_file(self, name: str) -> bytes:
        """Content of a file that a browser needs to track faces.  KeyError if unknown, UserError if not available."""
        from telepresence.tracking.browser_files import vision_file

        return vision_file(name, self._models)

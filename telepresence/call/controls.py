"""Commands to a running call, from the page or from the keys of the preview window."""

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
    """Carries out the commands of the page and of the preview window; UserError says why one is not possible now.

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
        """``models`` is the folder of files with which a page tracks faces; ``new_state`` is set when a new frame is to
        be rendered, ``stopping`` when the call is to end."""
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
        """A browser has started (``active``) or stopped to send its camera."""
        self._cameras.set_browser_camera(active)

    def freeze(self, on: bool) -> None:
        """Pause or resume learning.  UserError if the call was started without learning."""
        self._cameras.pause_learning(on)

    def withhold(self) -> None:
        """Raise UserError unless landmarks, without camera frames, are enough to track the subject."""
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
        """Replace the audio of the call by silence, or stop doing so."""
        self.audio.muted = on

    def recalibrate(self) -> None:
        """Calibrate the active driver again: the tracker of the subject, or the person who drives from outside.

        UserError if there is no calibrated subject.
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
        """Answer whether the face is the subject of the avatar.  UserError if that is not being asked."""
        camera = self._cameras.current
        if camera is None:
            raise UserError(NO_QUESTION)
        camera.subjects.answer(same)

    def background(self) -> dict[str, Any]:
        """JSON object of `GET /background`: the background in use, and the possible ones."""
        backgrounds = self._display.backgrounds
        return {"background": str(backgrounds.chosen), "choices": backgrounds.choices}

    def choose_background(self, text: str) -> None:
        """Use the background ``text``.  UserError if it is unknown."""
        self._display.backgrounds.choose(text)
        self._new_state.set()

    def tracking_file(self, name: str) -> bytes:
        """Content of a file with which a browser tracks faces.  KeyError if unknown, UserError if not available."""
        from telepresence.tracking.browser_files import vision_file

        return vision_file(name, self._models)

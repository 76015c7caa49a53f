"""What may be asked of a call, by whoever watches its page or sits before its preview window."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from insta_runtime.errors import UserError
from telepresence.learning.budget import Mode
from telepresence.outputs import Wish
from telepresence.streaming import Controls

if TYPE_CHECKING:
    from pathlib import Path

    from telepresence.call.camera_manager import People
    from telepresence.call.driver_selection import Driving
    from telepresence.display.backgrounds import Backgrounds
    from telepresence.display.display import Display
    from telepresence.runtime.audio import SoundBus


class CallControls:
    """Does what is asked for, or raises UserError: not now, and why.

    Everything may be called on any thread (a page asks on the network thread, the preview on one of its own), and
    nothing blocks but `vision`, which reads a file.
    """

    def __init__(
        self,
        people: People,
        driving: Driving,
        display: Display,
        backgrounds: Backgrounds,
        sound: SoundBus,
        *,
        models: Path | None,
        moved: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        """``models`` has the files with which a page tracks faces itself; ``moved`` hears that there is something new
        to show; ``stopping`` is set when the call is to end."""
        self._people, self._driving, self._display = people, driving, display
        self._backgrounds, self._sound, self._models = backgrounds, sound, models
        self._moved, self._stopping = moved, stopping

    def of_page(self) -> Controls:
        """What a page's control channel asks for."""
        return Controls(
            freeze=self._people.halt,
            mute=self.mute,
            recalibrate=self.recalibrate,
            orbit=self.orbit,
            withhold=self._people.withhold,
        )

    def grant(self, wish: Wish) -> None:
        """A key was pressed in the preview window."""
        match wish:
            case Wish.QUIT:
                self._stopping.set()
            case Wish.MUTE:
                self.mute(not self._sound.muted)
            case Wish.CALIBRATE:
                self.recalibrate()
            case Wish.FREEZE:
                person = self._people.current
                self._people.halt(person is None or person.budget.mode is not Mode.FROZEN)

    def mute(self, on: bool) -> None:
        """Let nobody hear anything, or go on."""
        self._sound.muted = on

    def recalibrate(self) -> None:
        """Get to know anew the neutral face of whoever moves the avatar's.  UserError if that is nobody."""
        if self._driving.external:
            self._driving.recalibrate()
        else:
            self._people.recalibrate()

    def orbit(self, yaw: float, pitch: float) -> None:
        """Turn the head that everybody sees, radians to the right in the picture and up."""
        self._display.orbit = yaw, pitch
        self._moved()

    def answer(self, same: bool) -> None:
        """Say whether this is the avatar's person.  UserError if nobody asked."""
        person = self._people.current
        if person is None:
            raise UserError("nobody asks who this is")
        person.sitters.answer(same)

    def background(self) -> dict[str, Any]:
        """What `GET /background` shows."""
        return {"background": str(self._backgrounds.chosen), "choices": self._backgrounds.choices}

    def choose_background(self, text: str) -> None:
        """Show the head over something else.  UserError if there is no such."""
        self._backgrounds.choose(text)
        self._moved()

    def vision(self, name: str) -> bytes:
        """One of the files with which a page tracks faces itself.  UserError if it is not to be had."""
        from telepresence.tracking.browser_files import vision_file

        return vision_file(name, self._models)

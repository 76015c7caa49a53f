"""What the server asks of, and tells, the daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from telepresence.runtime.audio import SoundBus
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox


@dataclass(frozen=True)
class Controls:
    """What a page may ask for.  Called on the network thread, must not block; UserError: not now, and why.

    ``freeze`` stops learning, or lets it go on; ``mute`` silences the call; ``recalibrate`` gets to know anew how the
    person sits before the camera.  ``orbit`` turns the head that is seen, by radians to the right and up.
    ``withhold`` says whether landmarks are enough to follow the face before a browser's camera.
    """

    freeze: Callable[[bool], None] = lambda _on: None
    mute: Callable[[bool], None] = lambda _on: None
    recalibrate: Callable[[], None] = lambda: None
    orbit: Callable[[float, float], None] = lambda _yaw, _pitch: None
    withhold: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class StreamHooks:
    """What the server asks of, and tells, the daemon.  All are called on the network thread and must not block.

    ``status`` gives what `GET /status` shows, ``metrics`` the Prometheus text of `GET /metrics`.  Pictures of a
    browser's camera go into ``camera``; ``on_camera`` hears True at its first picture and False when it has ended.
    ``background`` gives what `GET /background` shows, ``choose_background`` takes another one or raises UserError.
    ``sound`` carries what viewers hear; a browser's microphone speaks on it.
    ``answer`` hears whether the face is the person of the avatar, when that was asked; UserError if it was not.
    ``vision`` gives the bytes of one of the files with which a page tracks faces itself, by name; it may take its time
    (it is called on a thread of its own), and raises UserError where the file is not to be had.
    """

    status: Callable[[], Mapping[str, Any]] = dict
    metrics: Callable[[], str] = str
    camera: Mailbox[CameraFrame] = field(default_factory=lambda: Mailbox("browser camera"))
    on_camera: Callable[[bool], None] = lambda _started: None
    background: Callable[[], Mapping[str, Any]] = dict
    choose_background: Callable[[str], None] = lambda _text: None
    answer: Callable[[bool], None] = lambda _same: None
    controls: Controls = field(default_factory=Controls)
    vision: Callable[[str], bytes] = lambda _name: b""
    sound: SoundBus = field(default_factory=SoundBus)

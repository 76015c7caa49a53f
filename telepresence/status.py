"""What the daemon says of itself: the words of a card, and what `GET /status` shows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from telepresence.session import State

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from telepresence.backgrounds import Backgrounds
    from telepresence.display import Display
    from telepresence.person import Person
    from telepresence.streaming import StreamStats
    from telepresence.telemetry import Telemetry


def missing(person: Person) -> tuple[str, str]:
    """The words of the card: what there is no picture for."""
    if person.trouble is not None:
        return "No camera picture", person.trouble
    if not person.seen:
        if person.name == "browser":
            return "Waiting for a camera", "Press “Use my camera” on the page."
        return "Waiting for the camera", f"{person.name} has sent no picture yet."
    if person.session.state is State.WAITING:
        return "Waiting for a face", "Sit so that the camera sees your whole face."
    return "Getting to know you", "Look into the camera and talk for a moment."


@dataclass(frozen=True)
class Moment:
    """What of the daemon is not a part that stays: who is there, who drives the face, how the stream stands."""

    person: Person | None
    driver: str
    viewers: int
    stream: StreamStats | None
    zmq: str | None


class Status:
    """Puts together `/status` from the parts of the daemon; figures that are not known yet are None."""

    def __init__(
        self, source: str, head: HeadModel, telemetry: Telemetry, display: Display, backgrounds: Backgrounds
    ) -> None:
        self._source, self._head = source, head
        self._telemetry, self._display, self._backgrounds = telemetry, display, backgrounds

    def read(self, moment: Moment) -> dict[str, Any]:
        """What `GET /status` shows (docs/protocols-http.md)."""
        person, stream, telemetry = moment.person, moment.stream, self._telemetry
        learner = person.learner if person is not None else None
        score = learner.score if learner is not None else None
        latency = stream.latency_ms if stream is not None and stream.latency_ms is not None else telemetry.latency_ms()
        return {
            "state": str(person.session.state if person is not None else State.WAITING),
            "fps": stream.fps if stream is not None else 0.0,
            "avatar_fps": round(telemetry.avatar.read(), 1),
            "psnr_db": round(score.avatar_db, 2) if score is not None else None,
            "mesh_psnr_db": round(score.mesh_db, 2) if score is not None else None,
            "latency_ms": round(latency, 1) if latency is not None else None,
            "viewers": moment.viewers,
            "driver": moment.driver,
            "drops": telemetry.drops(),
            "errors": telemetry.errors.lines(),
            "source": person.name if person is not None else self._source,
            "camera_fps": round(telemetry.captured.read(), 1),
            "tracked_fps": round(telemetry.tracked.read(), 1),
            "steps": learner.trainer.steps if learner is not None else 0,
            "steps_per_second": round(telemetry.trained.read(), 1),
            "render_px": self._display.avatar.side,
            "background": str(self._backgrounds.chosen),
            "torso": learner is not None and learner.torso is not None and learner.torso.holds,
            "avatar": str(person.path) if person is not None else None,
            "head": {"name": self._head.name, "sha256": self._head.sha256, "basis": self._head.basis},
            "zmq": moment.zmq,
            "seconds": round(time.monotonic() - telemetry.started, 1),
        }

"""What the daemon says of itself: the words of a card, and what `GET /status` shows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from telepresence.call.session import State
from telepresence.learning.budget import Budget

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from telepresence.call.camera_session import Person
    from telepresence.display.backgrounds import Backgrounds
    from telepresence.display.display import Display
    from telepresence.learning.learner import Learner
    from telepresence.runtime.policy import Health
    from telepresence.runtime.telemetry import Telemetry
    from telepresence.streaming import StreamStats


def missing(person: Person) -> tuple[str, str]:
    """The words of the card: what there is no picture for."""
    if person.trouble is not None:
        return "No camera picture", person.trouble
    if not person.seen:
        if person.name == "browser":
            return "Waiting for a camera", "Press “Use my camera” on the page."
        return "Waiting for the camera", f"{person.name} has sent no picture yet."
    if person.sitters.asked:
        return "Is this you?", "Say so on the page, please."
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
    driving: dict[str, Any]
    stages: Mapping[str, Health]
    sound: Mapping[str, Any]


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
            "stream": _stream(stream),
            "driver": moment.driver,
            "drops": telemetry.drops() | ({"capture_clock": person.wrong_times} if person is not None else {}),
            "errors": telemetry.errors.lines(),
            "source": person.name if person is not None else self._source,
            "camera_fps": round(telemetry.captured.read(), 1),
            "tracked_fps": round(telemetry.tracked.read(), 1),
            "steps": learner.trainer.steps if learner is not None else 0,
            "steps_per_second": round(telemetry.trained.read(), 1),
            "render_px": self._display.avatar.side,
            "background": str(self._backgrounds.chosen),
            "orbit": dict(zip(("yaw", "pitch"), self._display.orbit, strict=True)),
            "torso": learner is not None and learner.torso is not None and learner.torso.holds,
            "avatar": str(person.path) if person is not None else None,
            "head": {"name": self._head.name, "sha256": self._head.sha256, "basis": self._head.basis},
            "zmq": moment.zmq,
            "driving": moment.driving | {"waited_ms": telemetry.stage_ms("drive")},
            "seconds": round(time.monotonic() - telemetry.started, 1),
            "stages": self._stages(moment),
            "tracking": {
                "state": person.tracker.state if person is not None else "searching",
                "health": _rounded(telemetry.tracking_health(), 3),
            },
            "training": self._training(person),
            "replay": _replay(learner),
            "gate": _gate(learner),
            "guidance": _guidance(learner),
            "sound": moment.sound,
            "memory": telemetry.memory,
            "person": _who(person),
            "events": _events(person),
        }

    def _stages(self, moment: Moment) -> dict[str, Any]:
        stages = dict(moment.stages)
        if moment.person is not None:
            stages["camera"] = moment.person.camera()
        return {
            name: {
                "state": str(health.condition),
                "silent_s": round(health.silent_s, 1),
                "restarts": health.restarts,
                "error": health.error,
                "ms": self._encode_ms(moment) if name == "encode" else self._telemetry.stage_ms(name),
            }
            for name, health in stages.items()
        }

    def _encode_ms(self, moment: Moment) -> dict[str, float] | None:
        median = moment.stream.encode_ms if moment.stream is not None else None
        return {"p50": median} if median is not None else None

    def _training(self, person: Person | None) -> dict[str, Any]:
        budget = person.budget if person is not None else Budget()
        learner = person.learner if person is not None else None
        published = learner.published if learner is not None else None
        age = time.monotonic() - published.published_at if published is not None else math.inf
        return {
            "state": str(budget.mode),
            "why": budget.why,
            "samples_per_second": round(self._telemetry.samples.read()),
            "snapshot_age_s": round(age, 1) if math.isfinite(age) else None,
            "snapshots": {str(outcome): count for outcome, count in published.counts.items()} if published else {},
        }


def _stream(stats: StreamStats | None) -> dict[str, Any] | None:
    """What is sent: all lines together, and each by codec and tier."""
    if stats is None:
        return None
    lines = {name: {"viewers": line.viewers, "kbps": line.kbps} for name, line in stats.lines.items()}
    return {"encoder": stats.encoder, "kbps": stats.kbps, "keyframes": stats.keyframes, "lines": lines}


def _who(person: Person | None) -> dict[str, Any] | None:
    """Who the face is taken for, by `learning.identity`."""
    if person is None:
        return None
    who, learner = person.sitter.acquaintance, person.learner
    return {
        "standing": str(who.standing),
        "asked": person.sitters.asked,
        "misfit_mm": _rounded(who.mm, 2),
        "worse_db": _rounded(learner.worse_db if learner is not None else None, 1),
        "put_away": len(person.sitters.away),
    }


def _events(person: Person | None) -> list[dict[str, Any]]:
    """What happened, oldest first, and how many seconds ago."""
    now = time.monotonic()
    events = list(person.sitters.events) if person is not None else []
    return [{"ago_s": round(now - event.at, 1), "kind": event.kind, "text": event.text} for event in events]


def _replay(learner: Learner | None) -> dict[str, Any] | None:
    """What is learned from, by `insta_runtime.learn.replay_policy.Composition`."""
    if learner is None:
        return None
    held = learner.trainer.replay.composition
    kinds = {"recent": held.recent, "history": held.history, "recalled": held.recalled}
    return {"pictures": kinds, "cells": held.cells, "fullest": held.fullest, "bytes": held.bytes}


def _gate(learner: Learner | None) -> dict[str, Any] | None:
    """What was worth learning from, and why the rest was not."""
    if learner is None:
        return None
    return {"taken": learner.gate.taken, "refused": dict(learner.gate.refused)}


def _guidance(learner: Learner | None) -> dict[str, Any] | None:
    """What has been seen of the person, and what to ask for next; None for nobody."""
    if learner is None:
        return None
    guidance = learner.guidance
    ring = [round(part, 2) for part in guidance.directions]
    return {"ring": ring, "seen": guidance.expressions, "hint": guidance.hint}


def _rounded(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None else None

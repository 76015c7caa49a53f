"""Status of the daemon for `GET /status`, and the text of the card that is displayed while there is no head."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from telepresence.call.session import SessionState
from telepresence.learning.budget import LearningBudget

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from telepresence.call.camera_session import CameraSession
    from telepresence.display.display import Display
    from telepresence.learning.learner import Learner
    from telepresence.runtime.failure_policy import Health
    from telepresence.runtime.telemetry import Telemetry
    from telepresence.streaming import StreamStats


def card_text(camera: CameraSession) -> tuple[str, str]:
    """(Title, hint) of the card: why there is no head to display, and what the user can do."""
    status = camera.reader.status
    if status.error is not None:
        return "No camera image", status.error
    if not status.has_frames:
        if camera.name == "browser":
            return "Waiting for a camera", "Press “Camera” on the page."
        return "Waiting for the camera", f"{camera.name} has sent no image yet."
    if camera.subjects.asked:
        return "Is this you?", "Please answer on the page."
    if camera.session.state is SessionState.WAITING:
        return "Waiting for a face", "Sit so that the camera sees your whole face."
    return "Getting to know you", "Look into the camera and talk for a moment."


@dataclass(frozen=True)
class StatusInputs:
    """Inputs of `Status.read` at one moment.

    Attributes:
        camera: camera session in use; None before the start.
        driver: identifier of the driver whose states are rendered.
        viewers: number of connected viewers.
        stream: statistics of the stream to viewers.
        zmq: address at which head parameters are received over ZeroMQ.
        drivers: state of each receiver of head states.
        stages: health of each stage of the daemon, by name.
        audio: state of the audio bus.
    """

    camera: CameraSession | None
    driver: str
    viewers: int
    stream: StreamStats | None
    zmq: str | None
    drivers: dict[str, Any]
    stages: Mapping[str, Health]
    audio: Mapping[str, Any]


class Status:
    """Builds the JSON object of `/status` from the parts of the daemon.  Stateless, and safe for every thread."""

    def __init__(self, source: str, head: HeadModel, telemetry: Telemetry, display: Display) -> None:
        """``source`` is the name of the home camera, given in the status before a camera is in use."""
        self._source, self._head, self._telemetry, self._display = source, head, telemetry, display

    def read(self, inputs: StatusInputs) -> dict[str, Any]:
        """JSON object of `GET /status` (docs/protocols-http.md); values that are not known yet are None."""
        camera, stream, telemetry = inputs.camera, inputs.stream, self._telemetry
        learner = camera.learner if camera is not None else None
        score = learner.score if learner is not None else None
        latency = stream.latency_ms if stream is not None and stream.latency_ms is not None else telemetry.latency_ms()
        wrong_times = {"capture_clock": camera.reader.status.wrong_times} if camera is not None else {}
        return {
            "state": str(camera.session.state if camera is not None else SessionState.WAITING),
            "fps": stream.fps if stream is not None else 0.0,
            "avatar_fps": round(telemetry.avatar.read(), 1),
            "psnr_db": round(score.avatar_db, 2) if score is not None else None,
            "mesh_psnr_db": round(score.mesh_db, 2) if score is not None else None,
            "latency_ms": round(latency, 1) if latency is not None else None,
            "viewers": inputs.viewers,
            "stream": _stream(stream),
            "driver": inputs.driver,
            "drops": telemetry.drops() | wrong_times,
            "errors": telemetry.errors.lines(),
            "source": camera.name if camera is not None else self._source,
            "camera_fps": round(telemetry.captured.read(), 1),
            "tracked_fps": round(telemetry.tracked.read(), 1),
            "steps": learner.trainer.steps if learner is not None else 0,
            "steps_per_second": round(telemetry.trained.read(), 1),
            "render_px": self._display.avatar.side,
            "background": str(self._display.backgrounds.chosen),
            "orbit": dict(zip(("yaw", "pitch"), self._display.orbit, strict=True)),
            "torso": learner is not None and learner.torso is not None and learner.torso.is_visible,
            "avatar": str(camera.path) if camera is not None else None,
            "head": {"name": self._head.name, "sha256": self._head.sha256, "basis": self._head.basis},
            "zmq": inputs.zmq,
            "drivers": inputs.drivers | {"waited_ms": telemetry.stage_ms("drive")},
            "seconds": round(time.monotonic() - telemetry.started, 1),
            "stages": self._stages(inputs),
            "tracking": {
                "state": camera.tracker.state if camera is not None else "searching",
                "health": _rounded(telemetry.tracking_health(), 3),
            },
            "training": self._training(camera),
            "replay": _replay(learner),
            "frame_filter": _frame_filter(learner),
            "guidance": _guidance(learner),
            "audio": inputs.audio,
            "memory": telemetry.memory,
            "subject": _subject(camera),
            "events": _events(camera),
        }

    def _stages(self, inputs: StatusInputs) -> dict[str, Any]:
        stages = dict(inputs.stages)
        if inputs.camera is not None:
            stages["camera"] = inputs.camera.reader.status.health()
        return {
            name: {
                "state": str(health.condition),
                "silent_s": round(health.silent_s, 1),
                "restarts": health.restarts,
                "error": health.error,
                "ms": _encode_ms(inputs.stream) if name == "encode" else self._telemetry.stage_ms(name),
            }
            for name, health in stages.items()
        }

    def _training(self, camera: CameraSession | None) -> dict[str, Any]:
        budget = camera.budget if camera is not None else LearningBudget()
        learner = camera.learner if camera is not None else None
        published = learner.snapshot_gate if learner is not None else None
        age = time.monotonic() - published.published_at if published is not None else math.inf
        return {
            "state": str(budget.mode),
            "reason": budget.reason,
            "samples_per_second": round(self._telemetry.samples.read()),
            "snapshot_age_s": round(age, 1) if math.isfinite(age) else None,
            "snapshots": {str(outcome): count for outcome, count in published.counts.items()} if published else {},
        }


def _encode_ms(stats: StreamStats | None) -> dict[str, float] | None:
    """Median time of encoding a frame, in ms."""
    median = stats.encode_ms if stats is not None else None
    return {"p50": median} if median is not None else None


def _stream(stats: StreamStats | None) -> dict[str, Any] | None:
    """Statistics of the stream: of all renditions together, and of each by codec and tier."""
    if stats is None:
        return None
    renditions = {name: {"viewers": each.viewers, "kbps": each.kbps} for name, each in stats.renditions.items()}
    failed = {"count": stats.failed, "last": stats.failure}
    return {
        "encoder": stats.encoder,
        "kbps": stats.kbps,
        "keyframes": stats.keyframes,
        "renditions": renditions,
        "failed": failed,
    }


def _subject(camera: CameraSession | None) -> dict[str, Any] | None:
    """Identity of the face, as `telepresence.learning.identity` verifies it."""
    if camera is None:
        return None
    verifier, learner = camera.subject.verifier, camera.learner
    return {
        "status": str(verifier.status),
        "question_open": camera.subjects.asked,
        "residual_mm": _rounded(verifier.residual_mm, 2),
        "psnr_loss_db": _rounded(learner.worse_db if learner is not None else None, 1),
        "others": len(camera.subjects.away),
    }


def _events(camera: CameraSession | None) -> list[dict[str, Any]]:
    """Newest events of the camera session, oldest first, with their age in seconds."""
    now = time.monotonic()
    events = camera.events.read() if camera is not None else []
    return [{"ago_s": round(now - event.at, 1), "kind": event.kind, "text": event.text} for event in events]


def _replay(learner: Learner | None) -> dict[str, Any] | None:
    """Composition of the replay buffer, as `insta_runtime.learn.replay_policy.ReplayComposition` has it."""
    if learner is None:
        return None
    held = learner.trainer.replay.composition
    kinds = {"recent": held.recent, "history": held.history, "recalled": held.recalled}
    return {"frames": kinds, "cells": held.cells, "largest_cell": held.largest_cell, "bytes": held.bytes}


def _frame_filter(learner: Learner | None) -> dict[str, Any] | None:
    """Number of frames accepted for learning, and of frames refused by reason."""
    if learner is None:
        return None
    return {"accepted": learner.frame_filter.accepted, "refused": dict(learner.frame_filter.refused)}


def _guidance(learner: Learner | None) -> dict[str, Any] | None:
    """Head directions and expressions observed so far, and the next prompt to the user."""
    if learner is None:
        return None
    guidance = learner.guidance
    ring = [round(part, 2) for part in guidance.directions]
    return {"ring": ring, "seen": guidance.expressions, "hint": guidance.hint}


def _rounded(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None else None

"""A call in real time with a recording in place of the camera and without a network, and its figures."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from insta_runtime.errors import UserError
from insta_runtime.evaluation.protocol import PROTOCOL
from insta_runtime.render.crossfade import FADE_S
from telepresence import __version__
from telepresence.measure.bench.timing import synchronise
from telepresence.measure.machine import device_name, source_commit
from telepresence.measure.rehearsal.call_record import CallRecord
from telepresence.measure.rehearsal.figures import (
    GOOD_DB,
    MEANINGS,
    SnapshotScorer,
    curve_point,
    forgetting,
    intervals,
    likeness_curve,
    publish_change,
    seconds_to,
)
from telepresence.measure.rehearsal.measurement_plan import NEXT_S, MeasurementPlan
from telepresence.measure.rehearsal.rehearsal_sink import RehearsalSink
from telepresence.measure.rehearsal.resources import ResourceMeter

if TYPE_CHECKING:
    from telepresence.call.daemon import Daemon
    from telepresence.config import Config
    from telepresence.sources import Source

STATUS_INTERVAL_S: Final = 1.0
"""Shortest time in seconds between two readings of the daemon's status during a rehearsed call."""
MAX_STATUSES: Final = 500
"""Approximate maximum number of readings of the daemon's status in one rehearsed call."""
FIRST_FRAME_TIMEOUT_S: Final = 60.0
"""Seconds within which the first frame of the recording must have been tracked."""


class RehearsedCall:
    """The daemon with a recording in place of the camera and `RehearsalSink` in place of the server, measured.

    Attributes:
        record: snapshots and observations kept during the call.
        resources: memory and threads during the call.
        sink: frames as they were handed to the encoder.
        status: last status of the daemon.
        statuses: (seconds of the call, status of the daemon) at regular intervals.
        failure: why the daemon stopped early; None if it did not.
        compile_s: seconds of compiling kernels before the call.
        stop_s: seconds that stopping the daemon took.
        lasted_s: seconds from the first camera frame to the end.
    """

    def __init__(
        self,
        name: str,
        camera: Callable[[], Source],
        seconds: float,
        config: Config,
        avatar: Path,
        head: Path | None,
        models: Path | None,
    ) -> None:
        """Prepare a call of ``seconds``, and 2 s more, in which the last weights are measured.

        ``camera`` opens the recording that is played, ``name`` is its name.  The avatar is saved to ``avatar``;
        ``head`` and ``models`` are files for the tracker.
        """
        from insta_runtime.avatar import choose_device

        self.config, self.seconds = config, seconds
        self.device = choose_device(config.run.device)
        self.record = CallRecord(MeasurementPlan.of(seconds), FADE_S)
        self.resources = ResourceMeter(self.device, lambda: (self.record.host_bytes, self.record.device_bytes))
        self.sink = RehearsalSink(config.stream, self.record.on_shown_frame)
        self.status: dict[str, Any] = {}
        self.statuses: list[tuple[float, dict[str, Any]]] = []
        self.failure: str | None = None
        self.compile_s = self.stop_s = self.lasted_s = 0.0
        self._name, self._camera, self._avatar, self._head, self._models = name, camera, avatar, head, models

    def run(self) -> None:
        """Hold the call in real time; Ctrl-C ends it early.  UserError if it cannot start."""
        from insta_runtime.backends import warm_up
        from telepresence.call.call_options import CallOptions
        from telepresence.call.daemon import Daemon, RehearsalOverrides

        began = time.perf_counter()
        warm_up(self.config.run.backend, self.device, self.config.avatar)
        self.compile_s = time.perf_counter() - began
        options = CallOptions(f"rehearsal of {self._name}", self._avatar, self._head, self._models)
        overrides = RehearsalOverrides(self.sink, self._camera, self.record.on_tracked_frame)
        daemon = Daemon(self.config, options, overrides)
        try:
            daemon.start()
            self.resources.start()
            with suppress(KeyboardInterrupt):  # figures of the part that was held are still worth having
                self._wait(daemon)
            self.lasted_s = self.record.seconds_at(time.monotonic())
            self.status = daemon.status()
        finally:
            self.resources.stop()
            began = time.perf_counter()
            daemon.stop()
            self.stop_s = time.perf_counter() - began
        synchronise(self.device)
        self.record.finish()
        self.failure = daemon.failure

    def _wait(self, daemon: Daemon) -> None:
        """Wait until the call is over or the daemon has stopped by itself, and read its status meanwhile."""
        deadline = time.monotonic() + FIRST_FRAME_TIMEOUT_S
        while self.record.began is None:
            if daemon.stopping.wait(0.05):
                return
            if time.monotonic() > deadline:
                raise UserError(
                    f"no frame of {self._name} was tracked within {FIRST_FRAME_TIMEOUT_S:.0f} s: use a clip of a face"
                )
        over = self.record.began + self.seconds + NEXT_S
        interval = max(STATUS_INTERVAL_S, self.seconds / MAX_STATUSES)
        while (left := over - time.monotonic()) > 0.0 and not daemon.stopping.wait(min(left, interval)):
            self.statuses.append((self.record.seconds_at(time.monotonic()), daemon.status()))

    def figures(self, clip_s: float) -> dict[str, Any]:
        """All figures of the call; ``clip_s`` is the duration of one round of the recording, in seconds."""
        began = time.perf_counter()
        record, scorer = self.record, SnapshotScorer(self.config.avatar.learn.size)
        points = likeness_curve(record, scorer, clip_s)
        figures: dict[str, Any] = {"seconds": self.seconds, "lasted_s": self.lasted_s}
        for moment in (10, 60):
            point = curve_point(points, float(moment)) or {}
            figures[f"psnr_next2s_at_{moment}s"] = point.get("psnr_db")
            figures[f"head_psnr_next2s_at_{moment}s"] = point.get("head_psnr_db")
            figures[f"seen_in_earlier_rounds_at_{moment}s"] = point.get("seen_in_earlier_rounds")
        first_face = record.first_face
        figures |= {
            **self._intervals(),
            **forgetting(record, scorer),
            **publish_change(record.crossfades),
            "seconds_to_22db": seconds_to(points, GOOD_DB, first_face),
            "first_face_s": first_face,
            "first_picture_s": _difference(first_face, record.first_picture),
            "first_avatar_s": _difference(first_face, record.first_avatar),
            "camera_pictures_tracked": record.pictures,
            "faces": record.faces,
            "curve": points,
            "showing": record.showing,
            "held_back": [
                {"seconds": at, **{name: status.get(name) for name in ("state", "psnr_db", "mesh_psnr_db")}}
                for at, status in self.statuses
            ],
            **self._training(),
            "samples_per_s": self._median("training", "samples_per_second"),
            "render_px": self._median("render_px"),
            "frame_filter": self.status.get("frame_filter"),
            "resources": self.resources.figures(),
            "kept_to_measure_mb": (record.host_bytes + record.device_bytes) / 1e6,
            "compile_s": self.compile_s,
            "stop_s": self.stop_s,
            "measuring_s": time.perf_counter() - began,
            "failure": self.failure,
            "status": self.status,
            "device": device_name(self.device),
            "commit": source_commit(),
            "versions": _versions(),
            "protocol": {**PROTOCOL, **MEANINGS, "size": self.config.avatar.learn.size},
        }
        return figures

    def _intervals(self) -> dict[str, Any]:
        """Intervals between frames, and between new frames, that were handed to the encoder."""
        start, times = self.record.began or 0.0, self.sink.times
        new = [at for at, fresh in zip(times, self.sink.fresh, strict=True) if fresh]
        return {
            "interval_ms": intervals(times, start, self.lasted_s),
            "fresh_interval_ms": intervals(new, start, self.lasted_s),
        }

    def _training(self) -> dict[str, Any]:
        """Steps, seconds, publications and backend of the last learner."""
        learner = self.record.learner
        return {
            "steps": learner.trainer.steps if learner is not None else 0,
            "training_seconds": learner.avatar.seconds if learner is not None else 0.0,
            "publications": learner.exchange.published if learner is not None else 0,
            "backend": learner.backend.kind if learner is not None else None,
        }

    def _median(self, *path: str) -> float | None:
        """Median over the call of one value of the status, by its nested keys; absent values do not count."""
        known = []
        for _, status in self.statuses:
            value: Any = status
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value:
                known.append(float(value))
        return median(known) if known else None


def _difference(first: float | None, then: float | None) -> float | None:
    return then - first if first is not None and then is not None else None


def _versions() -> dict[str, str | None]:
    import numpy
    import torch

    return {
        "telepresence": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numpy": numpy.__version__,
    }

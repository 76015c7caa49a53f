"""`telepresence rehearse`: a clip plays as a live camera through the whole daemon but the network, and is measured."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from insta_runtime.errors import UserError
from insta_runtime.evaluation.protocol import PROTOCOL, score_psnr, split
from insta_runtime.head import load_head
from insta_runtime.render.crossfade import FADE_S
from insta_runtime.tracked import TrackedFolder
from telepresence import __version__
from telepresence.measure.bench.timing import finish
from telepresence.measure.machine import device_name, source_commit
from telepresence.measure.offline import scoring
from telepresence.measure.rehearsal.figures import (
    GOOD_DB,
    MEANINGS,
    Judge,
    curve,
    forgetting,
    intervals,
    point_at,
    publish_change,
    seconds_to,
)
from telepresence.measure.rehearsal.outlet import RehearsalOutlet
from telepresence.measure.rehearsal.plan import NEXT_S, Plan
from telepresence.measure.rehearsal.record import Record
from telepresence.measure.rehearsal.resources import ResourceMeter

if TYPE_CHECKING:
    from telepresence.call.daemon import Daemon
    from telepresence.config import Config
    from telepresence.sources import Source

HOLDOUT: Final = 0.125
"""With `--offline`: the last part of the tracked pictures, which the call never shows, as in `fit`."""
STATUS_S: Final = 1.0
"""What the daemon says of itself is asked so often ..."""
STATUSES: Final = 500
"""... but hardly more often than this in a call."""
CAMERA_S: Final = 60.0
"""Seconds until the first picture of the clip must have been tracked."""


@dataclass(frozen=True)
class Clip:
    """What is played: how to open it, how long a round takes, and the file of its head model (None: the default)."""

    name: str
    open: Callable[[], Source]
    seconds: float
    fps: float
    head: Path | None
    facts: dict[str, str]


def rehearse(
    *,
    source: Path,
    seconds: float,
    config: Config,
    avatar: Path | None,
    head: Path | None,
    models: Path | None,
    offline: bool = False,
) -> dict[str, Any]:
    """Play ``source``, a tracked folder or a video, for ``seconds`` and the 2 s that are measured on after them.

    The avatar is saved to ``avatar``, or to a place that is deleted afterwards.  ``offline`` (of a tracked folder)
    keeps its last eighth from the call, and compares with a fit of as much training.  Raises UserError for what cannot
    be played.
    """
    clip = open_clip(source, head, HOLDOUT if offline else 0.0)
    with ExitStack() as stack:
        if avatar is None:
            avatar = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="telepresence-"))) / "avatar"
        call = Call(clip.name, clip.open, seconds, config, avatar, clip.head, models)
        call.play()
        figures = call.figures(clip.seconds)
        figures["clip"] = {"name": clip.name, "seconds": clip.seconds, "fps": clip.fps, **clip.facts}
        if offline:
            figures |= _against_offline(avatar, source, clip.head, config)
    figures = scoring.without_nan(figures)
    show(figures)
    return figures


def open_clip(source: Path, head: Path | None, holdout: float = 0.0) -> Clip:
    """The tracked folder or video at ``source``, without the last ``holdout`` part of a folder.  Raises UserError."""
    if source.is_dir():
        from telepresence.measure.offline.recordings import tracking_facts
        from telepresence.sources.tracked_folder import TrackedSource

        folder = TrackedFolder.open(source)
        train, _ = split(len(folder.frames), holdout)
        if len(train) < 2:
            raise UserError(f"{source} has {len(folder.frames)} pictures of a face: too few for a call")
        file = head or folder.head_file
        if load_head(file).sha256 != folder.take.head_sha256:
            raise UserError(f"{source} was tracked with another head model than --head: give that one")
        played = int(folder.frames[train[-1]]) + 1 if holdout else len(folder)
        camera = partial(TrackedSource, source, played)
        fps = folder.take.fps
        return Clip(source.name, camera, played / fps, fps, file, tracking_facts(folder))
    if holdout:
        raise UserError(f"{source} is no tracked folder: --offline needs one (telepresence track {source} --out DIR)")
    if not source.is_file():
        raise UserError(f"there is no video or tracked folder at {source}")
    from telepresence.sources.video_file import VideoFrames, VideoSource

    frames = VideoFrames(source)
    frames.close()
    facts = {"tracker": "live, as in a call"}
    return Clip(source.name, partial(VideoSource, source), frames.count / frames.fps, frames.fps, head, facts)


class Call:
    """A call without network: a camera of one's own in front, `Record` and `ResourceMeter` beside it."""

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
        """``camera`` opens what is played, ``name`` is what it is called; the call lasts ``seconds`` and 2 s more."""
        from insta_runtime.avatar import choose_device

        self.config, self.seconds = config, seconds
        self.device = choose_device(config.run.device)
        self.record = Record(Plan.of(seconds), FADE_S)
        self.resources = ResourceMeter(self.device, lambda: (self.record.host_bytes, self.record.device_bytes))
        self.outlet = RehearsalOutlet(config.stream, self.record.shown)
        self.status: dict[str, Any] = {}
        self.statuses: list[tuple[float, dict[str, Any]]] = []  # (seconds, what `/status` would have said)
        self.failure: str | None = None
        self.compile_s = self.stop_s = self.lasted_s = 0.0
        self._name, self._camera, self._avatar, self._head, self._models = name, camera, avatar, head, models

    def play(self) -> None:
        """Hold the call, in real time; Ctrl-C ends it.  UserError if it cannot begin."""
        from insta_runtime.backends import warm_up
        from telepresence.call.camera_manager import Options
        from telepresence.call.daemon import Daemon, RehearsalOverrides

        began = time.perf_counter()
        warm_up(self.config.run.backend, self.device, self.config.avatar)
        self.compile_s = time.perf_counter() - began
        options = Options(f"rehearsal of {self._name}", self._avatar, self._head, self._models)
        daemon = Daemon(self.config, options, RehearsalOverrides(self.outlet, self._camera, self.record.tracked))
        try:
            daemon.start()
            self.resources.start()
            with suppress(KeyboardInterrupt):  # what was measured so far is worth having
                self._wait(daemon)
            self.lasted_s = self.record.at(time.monotonic())
            self.status = daemon.status()
        finally:
            self.resources.stop()
            began = time.perf_counter()
            daemon.stop()
            self.stop_s = time.perf_counter() - began
        finish(self.device)
        self.record.finish()
        self.failure = daemon.failure

    def _wait(self, daemon: Daemon) -> None:
        """Until the call is over, or the daemon has stopped by itself."""
        deadline = time.monotonic() + CAMERA_S
        while self.record.began is None:
            if daemon.stopping.wait(0.05):
                return
            if time.monotonic() > deadline:
                raise UserError(f"{self._name} gave no picture within {CAMERA_S:.0f} s")
        over = self.record.began + self.seconds + NEXT_S
        every = max(STATUS_S, self.seconds / STATUSES)
        while (left := over - time.monotonic()) > 0.0 and not daemon.stopping.wait(min(left, every)):
            self.statuses.append((self.record.at(time.monotonic()), daemon.status()))

    def figures(self, clip_s: float) -> dict[str, Any]:
        """Everything that was measured; ``clip_s`` is how long it takes until the camera shows the same again."""
        began = time.perf_counter()
        record, judge = self.record, Judge(self.config.avatar.learn.size)
        start = record.began or 0.0
        points = curve(record, judge, clip_s)
        learner = record.learner
        new = [at for at, fresh in zip(self.outlet.times, self.outlet.fresh, strict=True) if fresh]
        figures: dict[str, Any] = {"seconds": self.seconds, "lasted_s": self.lasted_s}
        for moment in (10, 60):
            point = point_at(points, float(moment)) or {}
            figures[f"psnr_next2s_at_{moment}s"] = point.get("psnr_db")
            figures[f"head_psnr_next2s_at_{moment}s"] = point.get("head_psnr_db")
            figures[f"seen_in_earlier_rounds_at_{moment}s"] = point.get("seen_in_earlier_rounds")
        first_face, first_picture = record.first_face, record.first_picture
        figures |= {
            "interval_ms": intervals(self.outlet.times, start, self.lasted_s),
            "fresh_interval_ms": intervals(new, start, self.lasted_s),
            **forgetting(record, judge),
            **publish_change(record.fades),
            "seconds_to_22db": seconds_to(points, GOOD_DB, first_face),
            "first_face_s": first_face,
            "first_picture_s": _since(first_face, first_picture),
            "first_avatar_s": _since(first_face, record.first_avatar),
            "camera_pictures_tracked": record.pictures,
            "faces": record.faces,
            "curve": points,
            "showing": record.showing,
            "held_back": [
                {"seconds": at, **{name: status.get(name) for name in ("state", "psnr_db", "mesh_psnr_db")}}
                for at, status in self.statuses
            ],
            "steps": learner.trainer.steps if learner is not None else 0,
            "training_seconds": learner.avatar.seconds if learner is not None else 0.0,
            "publications": learner.exchange.published if learner is not None else 0,
            "backend": learner.backend.kind if learner is not None else None,
            "samples_per_s": self._median("training", "samples_per_second"),
            "render_px": self._median("render_px"),
            "gate": self.status.get("gate"),
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

    def _median(self, *path: str) -> float | None:
        """The median over the call of what `/status` says at ``path``, leaving out when it said nothing."""
        known = []
        for _, status in self.statuses:
            value: Any = status
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value:
                known.append(float(value))
        return median(known) if known else None


def _against_offline(avatar: Path, source: Path, head: Path | None, config: Config) -> dict[str, Any]:
    """The avatar that a call saved and one of `fit` with as much training, on what neither has seen of the clip."""
    from insta_runtime.avatar import Avatar, is_stored
    from insta_runtime.backends import choose_backend, make_renderer
    from telepresence.commands.fit import learn
    from telepresence.measure.offline.recordings import tracked_recording

    if not is_stored(avatar):  # nothing was learned
        return {"online_minus_offline_db": None}
    recording = tracked_recording(source, head)
    online = Avatar.load(avatar, recording.head, config.run.device)
    renderer = make_renderer(online.model, choose_backend(config.run.backend, online.model))
    _, held = split(len(recording.observations), HOLDOUT)
    kept_back, size = [recording.observations[i] for i in held], config.avatar.learn.size
    whole, of_head = score_psnr(renderer.render, kept_back, size, online.model.device)
    fitted = learn(recording, None, seconds=online.seconds, size=size, holdout=HOLDOUT, config=config, baseline=False)
    return {
        "online_minus_offline_db": whole - fitted["psnr_db"],
        "head_online_minus_offline_db": of_head - fitted["head_psnr_db"],
        "offline": {
            "training_seconds": online.seconds,
            "online_steps": online.steps,
            "offline_steps": fitted["steps"],
            "online_psnr_db": whole,
            "online_head_psnr_db": of_head,
            "offline_psnr_db": fitted["psnr_db"],
            "offline_head_psnr_db": fitted["head_psnr_db"],
            "pictures": len(kept_back),
            "split": f"the last {HOLDOUT:g} of the tracked pictures, shown to neither",
        },
    }


def _since(first: float | None, then: float | None) -> float | None:
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


def show(figures: dict[str, Any]) -> None:
    """Print the figures that matter most."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    words = scoring.words
    console.print(f"[bold]{figures['device']} · {figures['backend']} · {figures['commit']}[/]")
    for moment in (10, 60):
        known = figures[f"psnr_next2s_at_{moment}s"]
        if known is not None:
            again = " (seen in earlier rounds)" if figures[f"seen_in_earlier_rounds_at_{moment}s"] else ""
            head = words(figures[f"head_psnr_next2s_at_{moment}s"], 2)
            console.print(f"the next 2 s after {moment} s: {words(known, 2)} dB, head {head} dB{again}")
    for name, title in (("interval_ms", "between pictures"), ("fresh_interval_ms", "between new pictures")):
        spread = figures[name]
        if spread is not None:
            console.print(
                f"{title}: p50 {spread['p50']:.1f}, p99 {spread['p99']:.1f}, max {spread['max']:.1f} ms "
                f"({spread['count']})"
            )
    for name, unit in (
        ("first_picture_s", "s"),
        ("first_avatar_s", "s"),
        ("seconds_to_22db", "s"),
        ("forgetting_db", "dB"),
        ("publish_change_ratio", "x"),
        ("online_minus_offline_db", "dB"),
        ("steps", "steps"),
        ("samples_per_s", "samples a second"),
    ):
        if name in figures:
            console.print(f"{name}: {words(figures[name], 2)} {unit}")
    for name, unit in (("host_mb", "MB"), ("device_mb", "MB"), ("threads", "")):
        found = figures["resources"][name]
        if found is not None:
            slope = found["slope_per_hour"]
            grew = f", {slope:+.1f} {unit} an hour over the second half" if slope is not None else ""
            console.print(f"{name}: {found['end']:.0f} at the end, {found['max']:.0f} at most{grew}")
    for name in figures["resources"]["lost_threads"]:
        console.print(f"[bold red]the thread {name} was lost[/]")
    if figures["failure"] is not None:
        console.print(f"[bold red]the call broke off:[/] {figures['failure']}")

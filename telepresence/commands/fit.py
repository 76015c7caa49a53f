"""`telepresence fit`: learn an avatar from a recording, as fast as the machine can."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from insta_runtime.avatar import Avatar, avatar_file
from insta_runtime.backends import AnyTrainer, choose_backend, make_renderer, make_trainer
from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.learn.evaluation import Scores, score, split
from insta_runtime.render.coloured_mesh import ColouredMesh
from insta_runtime.tracked import TrackedFolder
from insta_runtime.types import Float32, Observation
from telepresence.commands.orbit import turned, yaw, yaw_turn
from telepresence.config import Config

ACTOR_FRAMES = 320
ACTOR_FPS = 10.0
COLOURED_FROM = 60  # pictures that the coloured mesh takes its colours from
CURVE_PICTURES = 8
CURVE_PARTS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)  # of the time, where the curve is measured; and the end


@dataclass(frozen=True)
class Recording:
    """What there is to learn from: observations in time, who they show, and views nobody saw, if they exist."""

    name: str
    head: HeadModel
    shape: Float32
    observations: list[Observation]
    calibration: dict[str, Any] | None = None
    unseen: tuple[Observation, ...] = ()


def fit(
    *,
    source: str,
    out: Path,
    seconds: float,
    size: int,
    holdout: float,
    config: Config,
    head: Path | None,
    models: Path | None,
) -> dict[str, Any]:
    """Learn the avatar ``out`` for ``seconds`` (training alone) from ``source``; returns the figures.

    ``source`` is a tracked folder, a video, or ``synthetic``.  The last ``holdout`` part of the tracked pictures
    is kept back and measured on at a side of ``size`` pixels.  Raises UserError for a source that cannot be used.
    """
    _writable(out)
    recording = _open(source, size, holdout, config, head, models)
    train, held = split(len(recording.observations), holdout)
    if len(train) < 2:
        raise UserError(f"{recording.name} has {len(recording.observations)} pictures of a face: too few to learn from")
    learned = [recording.observations[i] for i in train]
    kept_back = [recording.observations[i] for i in held]
    avatar = Avatar.create(recording.head, recording.shape, learned[0].camera, config.avatar, config.run.device)
    avatar.calibration = recording.calibration
    mesh = ColouredMesh(avatar.model.rig, recording.shape)
    for observation in _spread(learned, COLOURED_FROM):
        mesh.observe(observation)
    mesh_scores = score(mesh.render, kept_back, size)

    backend = choose_backend(config.run.backend, avatar.model)
    trainer, display = make_trainer(avatar.model, backend), make_renderer(avatar.model, backend)
    for observation in learned:
        trainer.add(observation)
        trainer.replay.take_in()

    def measure(observations: Sequence[Observation]) -> Scores:
        display.load(trainer.snapshot())
        return score(display.render, observations, size)

    curve = _train(trainer, seconds, lambda: measure(_spread(kept_back, CURVE_PICTURES)).psnr_db)
    scores = measure(kept_back)
    avatar.update(trainer.snapshot(), trainer.steps, seconds)
    avatar.save(out)
    figures: dict[str, Any] = {
        "source": recording.name,
        "psnr_db": scores.psnr_db,
        "ssim": scores.ssim,
        "head_psnr_db": scores.head_psnr_db,
        "mesh_psnr_db": mesh_scores.psnr_db,
        "mesh_head_psnr_db": mesh_scores.head_psnr_db,
        "train_psnr_db": measure(_spread(learned, 3 * CURVE_PICTURES)).psnr_db,
        "curve": [*curve, {"seconds": seconds, "psnr_db": _finite(scores.psnr_db)}],
        "steps": trainer.steps,
        "seconds": seconds,
        "size": size,
        "train_frames": len(learned),
        "holdout_frames": len(kept_back),
        "device": str(avatar.model.device),
        "backend": backend.kind,
        "protocol": f"last {holdout:.3g} of the tracked pictures held out; over white; mean of PSNR per picture",
    }
    if recording.unseen:
        figures["unseen_yaw20_psnr_db"] = measure(recording.unseen).psnr_db
    return {key: _finite(value) for key, value in figures.items()}


def _train(trainer: AnyTrainer, seconds: float, measure: Any) -> list[dict[str, float | None]]:
    """Train for ``seconds``; measuring does not count."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    due = [part * seconds for part in CURVE_PARTS]
    curve: list[dict[str, float | None]] = []
    columns = (TextColumn("learning"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=seconds)
        spent = 0.0
        while spent < seconds:
            if due and spent >= due[0]:
                due.pop(0)
                value = measure()
                curve.append({"seconds": round(spent, 1), "psnr_db": _finite(value)})
                bar.update(task, description=f"{value:.1f} dB")
            began = time.perf_counter()
            trainer.progress = spent / seconds
            trainer.step()
            spent += time.perf_counter() - began
            bar.update(task, completed=spent)
    return curve


def _open(source: str, size: int, holdout: float, config: Config, head: Path | None, models: Path | None) -> Recording:
    if source == "synthetic":
        return _synthetic(size, holdout)
    path = Path(source)
    if path.is_dir():
        return _tracked(path, head)
    if not path.is_file():
        raise UserError(f"there is no video or tracked folder at {source}")
    from telepresence.commands.track import track

    with tempfile.TemporaryDirectory(prefix="telepresence-") as folder:
        tracked = Path(folder) / "tracked"
        track(path, tracked, config=config, head=head, models=models, focal=None)
        return replace(_tracked(tracked, head), name=path.name)


def _tracked(path: Path, head: Path | None) -> Recording:
    folder = TrackedFolder.open(path)
    model = load_head(head or folder.head_file)
    if model.sha256 != folder.take.head_sha256:
        raise UserError(f"{path} was tracked with another head model than {model.name}: give that one with --head")
    observations = [folder.observation(int(i)) for i in folder.frames]
    return Recording(path.name, model, folder.take.shape, observations, _calibration(folder))


def _calibration(folder: TrackedFolder) -> dict[str, Any] | None:
    """What tracking learned of person and camera, for the calls that go on with this avatar; None of exact states."""
    from telepresence.tracking.calibration import Calibration

    text = folder.meta.get("calibration")
    return None if text is None else json.loads(Calibration.from_json(str(text)).to_json())


def _synthetic(size: int, holdout: float) -> Recording:
    """The actor's performance, exact, and held-out moments seen from 20 degrees beyond the outermost learned view."""
    from telepresence.actor.actor import Actor
    from telepresence.sources.synthetic import actor_take

    actor = Actor()
    frames = list(actor_take(ACTOR_FRAMES, ACTOR_FPS, max(size, 256), actor=actor))
    observations = []
    for frame in frames:
        assert frame.truth is not None
        observations.append(
            Observation(frame.frame_id, frame.rgb, frame.truth.alpha, frame.truth.camera, frame.truth.state)
        )
    train, held = split(len(observations), holdout)
    outermost = max(abs(yaw(observations[i].state)) for i in train)
    unseen = []
    for n, observation in enumerate(_spread([observations[i] for i in held], 2 * CURVE_PICTURES)):
        target = (outermost + math.radians(20.0)) * (1 if n % 2 else -1)
        turn = yaw_turn(target - yaw(observation.state))
        state = turned(observation.state, turn)
        rgb, alpha = actor.render(state, observation.camera, room=turn)
        unseen.append(Observation(observation.frame_id, rgb, alpha, observation.camera, state))
    return Recording("synthetic", actor.head, actor.shape, observations, unseen=tuple(unseen))


def _spread(observations: Sequence[Observation], count: int) -> list[Observation]:
    """At most ``count`` of them, evenly spread."""
    picked = np.linspace(0, len(observations) - 1, min(count, len(observations))).round().astype(int)
    return [observations[i] for i in picked]


def _writable(out: Path) -> None:
    """Find out before the work, not after it, that the result cannot be written."""
    try:
        avatar_file(out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the avatar cannot be written to {out}: {error.strerror}") from None


def _finite(value: Any) -> Any:
    return (
        round(value, 4)
        if isinstance(value, float) and math.isfinite(value)
        else None
        if isinstance(value, float)
        else value
    )

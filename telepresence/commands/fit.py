"""`telepresence fit`: learn an avatar from a recording, as fast as the machine can."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insta_runtime.avatar import Avatar, avatar_file
from insta_runtime.backends import AnyTrainer, choose_backend, make_renderer, make_trainer
from insta_runtime.errors import UserError
from insta_runtime.evaluation.protocol import score, score_psnr, split
from insta_runtime.evaluation.regions import FaceRegions
from insta_runtime.render.coloured_mesh import ColouredMesh
from insta_runtime.torso.learning import learn_torso
from insta_runtime.types import Observation
from telepresence.config import Config
from telepresence.measure.offline import scoring
from telepresence.measure.offline.recordings import UNSEEN, Recording, open_recording, spread

if TYPE_CHECKING:
    import torch

COLOURED_FROM = 60  # pictures that the coloured mesh takes its colours from
CURVE_PICTURES = 16
TRAIN_PICTURES = 24  # of those learned from, that are measured too
CURVE_SECONDS = (0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 960, 1440, 1920, 2880)

Point = dict[str, float | None]


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
    report: Path | None = None,
) -> dict[str, Any]:
    """Learn the avatar ``out`` for ``seconds`` (training alone) from ``source``; returns the figures.

    ``source`` is a tracked folder, a video, or ``synthetic``.  The last ``holdout`` part of the tracked pictures
    is kept back and measured on at a side of ``size`` pixels.  The figures are also written beside the avatar
    (`figures_file`), and a page for people to ``report``.  Raises UserError for a source that cannot be used.
    """
    for path in (avatar_file(out), report):
        if path is not None:
            _writable(path)
    recording = open_recording(source, size, holdout, config, head, models)
    figures = learn(recording, out, seconds=seconds, size=size, holdout=holdout, config=config, report=report)
    scoring.show(figures)
    return figures


def learn(
    recording: Recording,
    out: Path | None,
    *,
    seconds: float,
    size: int,
    holdout: float,
    config: Config,
    report: Path | None = None,
    baseline: bool = True,
) -> dict[str, Any]:
    """Learn an avatar of ``recording`` and measure it; `fit` says how.

    ``out`` None saves nothing; ``baseline`` also measures the coloured mesh.
    """
    train, held = split(len(recording.observations), holdout)
    if len(train) < 2:
        raise UserError(f"{recording.name} has {len(recording.observations)} pictures of a face: too few to learn from")
    learned = [recording.observations[i] for i in train]
    kept_back = [recording.observations[i] for i in held]
    camera = learned[0].camera
    size = min(size, max(camera.width, camera.height))  # pictures are never enlarged
    avatar = Avatar.create(recording.head, recording.shape, camera, config.avatar, config.run.device)
    avatar.calibration = recording.calibration
    device = avatar.model.device
    mesh = _coloured_mesh(avatar, learned)
    mesh_psnr = _mesh_psnr(mesh, kept_back, size, device) if baseline else {}
    if config.avatar.occupancy.inpaint:
        avatar.model.underlay = mesh.underlay()

    backend = choose_backend(config.run.backend, avatar.model)
    trainer, display = make_trainer(avatar.model, backend), make_renderer(avatar.model, backend)
    for observation in learned:
        trainer.add(observation)
        trainer.replay.take_in()

    def measure(observations: Sequence[Observation]) -> Point:
        display.load(trainer.snapshot())
        whole, head = score_psnr(display.render, observations, size, device)
        return {"psnr_db": whole, "head_psnr_db": head}

    curve = _train(trainer, seconds, lambda: measure(spread(kept_back, CURVE_PICTURES)))
    trained = {f"train_{name}": value for name, value in measure(spread(learned, TRAIN_PICTURES)).items()}
    avatar.update(trainer.snapshot(), trainer.steps, seconds)
    if out is not None:
        torso = learn_torso(learned, config.avatar.torso.size, device)
        if torso is not None:
            avatar.attach(torso)
        avatar.save(out)
    lpips = scoring.Lpips.at_hand(device)
    face = FaceRegions(avatar.model.rig, recording.shape)
    scores = score(display.render, kept_back, size, face, device, lpips.measure)
    protocol = scoring.protocol_of(
        recording.name, recording.facts, len(recording.observations), kept_back, holdout, size, lpips.told
    )
    figures: dict[str, Any] = {
        "source": recording.name,
        **scoring.figures_of(scores),
        **mesh_psnr,
        **trained,
    }
    for name, views in recording.unseen.items():
        figures[f"{name}_psnr_db"] = measure(views)["psnr_db"]
        protocol[name] = UNSEEN[name]
    last = {"seconds": seconds, "steps": trainer.steps, "psnr_db": scores.psnr_db, "head_psnr_db": scores.head_psnr_db}
    figures |= {
        "curve": [*curve, last],
        "steps": trainer.steps,
        "seconds": seconds,
        "size": size,
        "train_frames": len(learned),
        "holdout_frames": len(kept_back),
        "device": str(device),
        "backend": backend.kind,
        "protocol": protocol
        | {
            "training": scoring.training(seconds, trainer.steps, backend.kind),
            "curve": f"{CURVE_PICTURES} held-out pictures, evenly spread; its last point all of them",
        },
        "each": scoring.pictures_of(scores),
    }
    figures = scoring.without_nan(figures)
    if out is not None:
        figures_file(out).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if report is not None:
        from telepresence.measure.report.page import write_report

        write_report(report, figures, display.render, kept_back, size, face, device, recording.fps)
    return figures


def figures_file(avatar: Path) -> Path:
    """Where `fit` leaves its figures for `evaluate`: beside the avatar's file."""
    file = avatar_file(avatar)
    return file.with_name("fit.json" if file.stem == "avatar" else f"{file.stem}.fit.json")


def _coloured_mesh(avatar: Avatar, learned: list[Observation]) -> ColouredMesh:
    """What viewers see before there is an avatar."""
    mesh = ColouredMesh(avatar.model.rig, avatar.model.shape)
    for observation in spread(learned, COLOURED_FROM):
        mesh.observe(observation)
    return mesh


def _mesh_psnr(mesh: ColouredMesh, kept_back: list[Observation], size: int, device: torch.device) -> dict[str, float]:
    whole, head = score_psnr(mesh.render, kept_back, size, device)
    return {"mesh_psnr_db": whole, "mesh_head_psnr_db": head}


def _train(trainer: AnyTrainer, seconds: float, measure: Callable[[], Point]) -> list[Point]:
    """Train for ``seconds``; measuring does not count."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    due = [moment for moment in CURVE_SECONDS if moment < seconds]
    curve: list[Point] = []
    columns = (TextColumn("learning"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=seconds)
        spent = 0.0
        while spent < seconds:
            if due and spent >= due[0]:
                due = [moment for moment in due if moment > spent]
                point = measure()
                curve.append({"seconds": round(spent, 2), "steps": trainer.steps, **point})
                bar.update(task, description=f"{scoring.words(point['psnr_db'], 1)} dB")
            began = time.perf_counter()
            trainer.progress = spent / seconds
            trainer.step()
            spent += time.perf_counter() - began
            bar.update(task, completed=spent)
    return curve


def _writable(path: Path) -> None:
    """Find out before the work, not after it, that the result cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None

"""Offline training: learn an avatar from a recording as fast as the machine can, and measure it on held-back frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from insta_runtime.avatar import Avatar
from insta_runtime.backends import AnyRenderer, Backend, choose_backend, make_renderer, make_trainer
from insta_runtime.errors import UserError
from insta_runtime.evaluation.protocol import score, score_psnr, split
from insta_runtime.evaluation.regions import FaceRegions
from insta_runtime.learn.trainer_interface import Trainer
from insta_runtime.render.coloured_mesh import ColouredMesh
from insta_runtime.torso.learning import learn_torso
from insta_runtime.types import Observation
from telepresence.config import Config
from telepresence.measure.offline import scoring
from telepresence.measure.offline.fit_figures import write_figures
from telepresence.measure.offline.recordings import UNSEEN, Recording, evenly_spaced

if TYPE_CHECKING:
    import torch

MESH_FRAMES: Final = 60
"""Number of frames that the coloured mesh takes its colours from."""
CURVE_FRAMES: Final = 16
"""Number of held-back frames measured for each point of the learning curve."""
LEARNED_FRAMES: Final = 24
"""Number of learned frames that are measured too, for ``train_psnr_db``."""
CURVE_SECONDS: Final = (
    *(0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90),
    *(120, 180, 240, 360, 480, 720, 960, 1440, 1920, 2880),
)
"""Seconds of training at which the learning curve has a point."""

CurvePoint = dict[str, float | None]
"""One point of a learning curve: ``psnr_db`` and ``head_psnr_db``, with ``seconds`` and ``steps`` of training."""


@dataclass(frozen=True)
class _Fit:
    """An avatar in training, with its renderer, the split of its recording, and the side of measured images."""

    avatar: Avatar
    backend: Backend
    trainer: Trainer
    renderer: AnyRenderer
    learned: list[Observation]
    held_back: list[Observation]
    size: int

    @property
    def device(self) -> torch.device:
        return self.avatar.model.device

    def measure(self, observations: Sequence[Observation]) -> CurvePoint:
        """PSNR of the current weights."""
        self.renderer.load(self.trainer.snapshot())
        whole, head = score_psnr(self.renderer.render, observations, self.size, self.device)
        return {"psnr_db": whole, "head_psnr_db": head}


def learn_avatar(
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
    """Learn an avatar from a recording and measure it on its held-back last part.

    Args:
        recording: the tracked frames.
        out: where the avatar is saved, with its figures beside it (`fit_figures`); None saves nothing.
        seconds: time of training alone; loading, compiling and measuring do not count.
        size: side in pixels at which frames are measured; never more than they have.
        holdout: fraction of the frames, at the end, that is held back and measured on.
        report: HTML file to write, or None.
        baseline: also measure the coloured mesh.

    Returns the figures as `telepresence fit` writes them.  Raises UserError for fewer than two frames to learn from.
    """
    train, held = split(len(recording.observations), holdout)
    if len(train) < 2:
        raise UserError(
            f"{recording.name} has {len(recording.observations)} frames with a face, too few to learn from: "
            "give a longer recording or a smaller --holdout"
        )
    learned = [recording.observations[i] for i in train]
    held_back = [recording.observations[i] for i in held]
    camera = learned[0].camera
    size = min(size, max(camera.width, camera.height))  # frames are never enlarged
    avatar = Avatar.create(recording.head, recording.shape, camera, config.avatar, config.run.device)
    avatar.calibration = recording.calibration
    mesh = _coloured_mesh(avatar, learned)
    mesh_psnr = _mesh_psnr(mesh, held_back, size, avatar.model.device) if baseline else {}
    if config.avatar.occupancy.inpaint:
        avatar.model.underlay = mesh.underlay()

    backend = choose_backend(config.run.backend, avatar.model)
    trainer, renderer = make_trainer(avatar.model, backend), make_renderer(avatar.model, backend)
    fit = _Fit(avatar, backend, trainer, renderer, learned, held_back, size)
    for observation in learned:
        trainer.add(observation)
        trainer.take_in()

    curve = _train(trainer, seconds, lambda: fit.measure(evenly_spaced(held_back, CURVE_FRAMES)))
    trained = {f"train_{name}": value for name, value in fit.measure(evenly_spaced(learned, LEARNED_FRAMES)).items()}
    avatar.update(trainer.snapshot(), trainer.steps, seconds)
    if out is not None:
        torso = learn_torso(learned, config.avatar.torso.size, fit.device)
        if torso is not None:
            avatar.attach(torso)
        avatar.save(out)
    face = FaceRegions(avatar.model.rig, recording.shape)
    figures = _figures(fit, recording, face, curve, mesh_psnr | trained, seconds, holdout)
    if out is not None:
        write_figures(out, figures)
    if report is not None:
        from telepresence.measure.report.page import write_report

        write_report(report, figures, renderer.render, held_back, size, face, fit.device, recording.fps)
    return figures


def _figures(
    fit: _Fit,
    recording: Recording,
    face: FaceRegions,
    curve: list[CurvePoint],
    other_psnr: dict[str, float | None],
    seconds: float,
    holdout: float,
) -> dict[str, Any]:
    """Measure the trained avatar; ``other_psnr`` are the figures of the mesh and of learned frames."""
    lpips = scoring.Lpips.load(fit.device)
    steps, backend = fit.trainer.steps, fit.backend.kind
    scores = score(fit.renderer.render, fit.held_back, fit.size, face, fit.device, lpips.measure)
    total = len(recording.observations)
    protocol = scoring.protocol_of(
        recording.name, recording.facts, total, fit.held_back, holdout, fit.size, lpips.description
    )
    figures: dict[str, Any] = {"source": recording.name, **scoring.figures_of(scores), **other_psnr}
    for name, views in recording.unseen.items():
        figures[f"{name}_psnr_db"] = fit.measure(views)["psnr_db"]
        protocol[name] = UNSEEN[name]
    last = {"seconds": seconds, "steps": steps, "psnr_db": scores.psnr_db, "head_psnr_db": scores.head_psnr_db}
    figures |= {
        "curve": [*curve, last],
        "steps": steps,
        "seconds": seconds,
        "size": fit.size,
        "train_frames": len(fit.learned),
        "holdout_frames": len(fit.held_back),
        "device": str(fit.device),
        "backend": backend,
        "protocol": protocol
        | {
            "training": scoring.training_note(seconds, steps, backend),
            "curve": f"{CURVE_FRAMES} held-out frames, evenly spaced; its last point all of them",
        },
        "each": scoring.figures_of_frames(scores),
    }
    plain: dict[str, Any] = scoring.without_nan(figures)
    return plain


def _coloured_mesh(avatar: Avatar, learned: list[Observation]) -> ColouredMesh:
    """Head mesh with vertex colours, which viewers of a call see before the avatar."""
    mesh = ColouredMesh(avatar.model.rig, avatar.model.shape)
    for observation in evenly_spaced(learned, MESH_FRAMES):
        mesh.observe(observation)
    return mesh


def _mesh_psnr(
    mesh: ColouredMesh, held_back: list[Observation], size: int, device: torch.device
) -> dict[str, float | None]:
    whole, head = score_psnr(mesh.render, held_back, size, device)
    return {"mesh_psnr_db": whole, "mesh_head_psnr_db": head}


def _train(trainer: Trainer, seconds: float, measure: Callable[[], CurvePoint]) -> list[CurvePoint]:
    """Train for ``seconds``, without the time that ``measure`` takes; returns the learning curve."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    due = [moment for moment in CURVE_SECONDS if moment < seconds]
    curve: list[CurvePoint] = []
    columns = (TextColumn("learning"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=seconds)
        spent = 0.0
        while spent < seconds:
            if due and spent >= due[0]:
                due = [moment for moment in due if moment > spent]
                point = measure()
                curve.append({"seconds": round(spent, 2), "steps": trainer.steps, **point})
                bar.update(task, description=f"{scoring.format_figure(point['psnr_db'], 1)} dB")
            began = time.perf_counter()
            trainer.schedule.progress = spent / seconds
            trainer.step()
            spent += time.perf_counter() - began
            bar.update(task, completed=spent)
    return curve

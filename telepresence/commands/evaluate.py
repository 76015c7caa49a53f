"""`telepresence evaluate`: measure an avatar against tracked frames."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from insta_runtime.avatar import Avatar
from insta_runtime.backends import choose_backend, make_renderer
from insta_runtime.errors import UserError
from insta_runtime.evaluation.protocol import score, split
from insta_runtime.evaluation.regions import FaceRegions
from insta_runtime.head import load_head
from insta_runtime.tracked import TrackedFolder
from insta_runtime.types import Camera, HeadState, RenderedFrame
from telepresence.commands.fit import figures_file
from telepresence.config import Config
from telepresence.measure.offline import scoring
from telepresence.measure.offline.recordings import read_observations, tracking_facts

MAX_FIGURES = 1 << 24  # characters of a file of figures


def evaluate(
    *, avatar: Path, tracked: Path, size: int | None, holdout: float, config: Config, report: Path | None = None
) -> dict[str, Any]:
    """Score ``avatar`` on the last ``holdout`` part of the tracked folder ``tracked``; returns the figures.

    ``size`` is the side of the pictures in pixels; None takes the one that was learned.  A page for people goes to
    ``report``.  Raises UserError for a folder or an avatar that cannot be used, or that do not share a head model.
    """
    from rich.console import Console
    from rich.progress import Progress

    folder = TrackedFolder.open(tracked)
    loaded = Avatar.load(avatar, load_head(folder.head_file), config.run.device)
    frames = folder.frames
    _, held = split(len(frames), holdout)
    if not held:
        raise UserError(f"{tracked} has no frames to measure on: give a larger --holdout")
    device, camera = loaded.model.device, folder.take.camera
    side = min(size or loaded.model.config.learn.size, max(camera.width, camera.height))  # never enlarged
    observations = read_observations(folder, (frames[i] for i in held))
    backend = choose_backend(config.run.backend, loaded.model)
    renderer = make_renderer(loaded.model, backend)
    # Where mouth and eyes are is the recording's business: its identity code, not the avatar's.
    face = FaceRegions(loaded.model.rig, folder.take.shape)
    lpips = scoring.Lpips.at_hand(device)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("evaluating", total=len(observations))

        def render(state: HeadState, camera: Camera) -> RenderedFrame:
            bar.advance(task)
            return renderer.render(state, camera)

        scores = score(render, observations, side, face, device, lpips.measure)
    facts, told = tracking_facts(folder), stored_training(avatar, loaded.steps)
    figures = scoring.without_nan(
        {
            "avatar": str(avatar),
            "tracked": tracked.name,
            **scoring.figures_of(scores),
            "pictures": scores.pictures,
            "size": side,
            "seconds": loaded.seconds,
            "steps": loaded.steps,
            "device": str(device),
            "backend": backend.kind,
            **told,
            "protocol": {
                **scoring.protocol_of(tracked.name, facts, len(frames), observations, holdout, side, lpips.told),
                "training": scoring.training(loaded.seconds, loaded.steps, told.get("learned_with")),
            },
            "each": scoring.pictures_of(scores),
        }
    )
    scoring.show(figures)
    if report is not None:
        from telepresence.measure.report.page import write_report

        write_report(report, figures, renderer.render, observations, side, face, device, folder.take.fps)
    return figures


def stored_training(avatar: Path, steps: int) -> dict[str, Any]:
    """What `fit` left beside the avatar of how it was learned, unless it has gone on learning since.

    The file may come from anyone: what is not as it should be counts as absent.
    """
    try:
        text = figures_file(avatar).read_text(encoding="utf-8")[:MAX_FIGURES]
        told = json.loads(text)
        if told["steps"] != steps:
            return {}
        curve = [
            {name: _number(point[name]) for name in ("seconds", "psnr_db", "head_psnr_db")} for point in told["curve"]
        ]
        return {"learned_with": str(told["backend"])[:20], "learned_from": str(told["source"])[:200], "curve": curve}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _number(value: Any) -> float | None:
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else None

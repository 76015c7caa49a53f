"""Evaluation of a saved avatar against the frames of a tracked folder."""

from __future__ import annotations

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
from telepresence.config import Config
from telepresence.measure.offline import scoring
from telepresence.measure.offline.fit_figures import load_training
from telepresence.measure.offline.recordings import read_observations, tracking_facts


def evaluate_avatar(
    avatar: Path, tracked: Path, *, size: int | None, holdout: float, config: Config, report: Path | None = None
) -> dict[str, Any]:
    """Measure an avatar on the last part of a tracked folder.

    Args:
        avatar: the avatar's folder or file.
        tracked: a tracked folder of the same person.
        size: side of the compared images in pixels; None for the side that the avatar was learned at.
        holdout: fraction of the frames, at the end, that is measured on.
        report: HTML file to write, or None.

    Returns the figures as `telepresence evaluate` writes them.  Raises UserError for a folder or an avatar that cannot
    be read, and if they do not share a head model.
    """
    from rich.console import Console
    from rich.progress import Progress

    folder = TrackedFolder.open(tracked)
    loaded = Avatar.load(avatar, load_head(folder.head_file), config.run.device)
    frames = folder.frames
    _, held = split(len(frames), holdout)
    if not held:
        raise UserError(f"{tracked} has no frames to measure on: pass a larger --holdout")
    device, camera = loaded.model.device, folder.take.camera
    side = min(size or loaded.model.config.learn.size, max(camera.width, camera.height))  # never enlarged
    observations = read_observations(folder, (frames[i] for i in held))
    backend = choose_backend(config.run.backend, loaded.model)
    renderer = make_renderer(loaded.model, backend)
    # Regions of mouth and eyes belong to the recording: they follow its identity code, not the avatar's.
    face = FaceRegions(loaded.model.rig, folder.take.shape)
    lpips = scoring.Lpips.load(device)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("evaluating", total=len(observations))

        def render(state: HeadState, camera: Camera) -> RenderedFrame:
            bar.advance(task)
            return renderer.render(state, camera)

        scores = score(render, observations, side, face, device, lpips.measure)
    facts, training = tracking_facts(folder), load_training(avatar, loaded.steps)
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
            **training,
            "protocol": {
                **scoring.protocol_of(tracked.name, facts, len(frames), observations, holdout, side, lpips.description),
                "training": scoring.training_note(loaded.seconds, loaded.steps, training.get("learned_with")),
            },
            "each": scoring.figures_of_frames(scores),
        }
    )
    if report is not None:
        from telepresence.measure.report.page import write_report

        write_report(report, figures, renderer.render, observations, side, face, device, folder.take.fps)
    return figures

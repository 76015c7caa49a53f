"""`telepresence evaluate`: measure an avatar against tracked frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from insta_runtime.avatar import Avatar
from insta_runtime.backends import choose_backend, make_renderer
from insta_runtime.errors import UserError
from insta_runtime.head import load_head
from insta_runtime.learn.evaluation import score, split
from insta_runtime.tracked import TrackedFolder
from insta_runtime.types import Camera, HeadState, RenderedFrame
from telepresence.config import Config


def evaluate(*, avatar: Path, tracked: Path, size: int | None, holdout: float, config: Config) -> dict[str, Any]:
    """Score ``avatar`` on the last ``holdout`` part of the tracked folder ``tracked``; returns the figures.

    ``size`` is the side of the pictures in pixels; None takes the one that was learned.  Raises UserError for a
    folder or an avatar that cannot be used, or that do not share a head model.
    """
    from rich.console import Console
    from rich.progress import Progress

    folder = TrackedFolder.open(tracked)
    loaded = Avatar.load(avatar, load_head(folder.head_file), config.run.device)
    frames = folder.frames
    _, held = split(len(frames), holdout)
    if not held:
        raise UserError(f"{tracked} has no frames to measure on: give a larger --holdout")
    side = size or loaded.model.config.learn.size
    observations = [folder.observation(int(frames[i])) for i in held]
    renderer = make_renderer(loaded.model, choose_backend(config.run.backend, loaded.model))
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("evaluating", total=len(observations))

        def render(state: HeadState, camera: Camera) -> RenderedFrame:
            bar.advance(task)
            return renderer.render(state, camera)

        scores = score(render, observations, side)
    figures = {
        "avatar": str(avatar),
        "tracked": tracked.name,
        "psnr_db": scores.psnr_db,
        "ssim": scores.ssim,
        "head_psnr_db": scores.head_psnr_db,
        "pictures": scores.pictures,
        "size": side,
        "seconds": loaded.seconds,
        "steps": loaded.steps,
        "device": str(loaded.model.device),
        "protocol": f"last {holdout:.3g} of the tracked pictures; over white; mean of PSNR per picture",
    }
    _print(figures)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(
        f"{figures['pictures']} pictures of {figures['tracked']} at {figures['size']} px: "
        f"PSNR {figures['psnr_db']:.2f} dB, head {figures['head_psnr_db']:.2f} dB, SSIM {figures['ssim']:.4f}"
    )
    console.print(f"[dim]{figures['protocol']}[/]")

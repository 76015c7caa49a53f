"""Figures of an avatar as `fit` and `evaluate` print and store them, with the protocol they were taken by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insta_runtime.evaluation.protocol import METRICS, PROTOCOL, REGIONS, Perceptual, Scores
from insta_runtime.types import Observation
from telepresence import __version__

if TYPE_CHECKING:
    import torch
    from rich.table import Table

ALEXNET = "alexnet-owt-*.pth"  # as torchvision names the weights that LPIPS is built on


@dataclass(frozen=True)
class Lpips:
    """LPIPS (Zhang et al. 2018), if its package and weights are at hand; nothing is ever downloaded.

    Attributes:
        measure: the distance of two pictures, or None.
        told: what was used, or why there is none.
    """

    measure: Perceptual | None
    told: str

    @staticmethod
    def at_hand(device: torch.device) -> Lpips:
        import torch

        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if not any(folder.glob(ALEXNET)):
            return Lpips(None, f"not measured: its weights ({ALEXNET}) are not among torch's checkpoints")
        try:
            import lpips

            network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
        except (ImportError, RuntimeError, OSError) as error:  # absent, or of another torch
            return Lpips(None, f"not measured: the package lpips cannot be used ({error})")

        @torch.no_grad()
        def measure(picture: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            first, second = (2.0 * image.permute(2, 0, 1)[None] - 1.0 for image in (picture, truth))
            return network(first, second).flatten()[0]

        return Lpips(measure, "AlexNet, version 0.1, whole frame")


def figures_of(scores: Scores) -> dict[str, Any]:
    """The figures, flat: ``psnr_db, ssim, flip, lpips``, the same with ``head_``, ``mouth_`` and ``eyes_`` before."""
    still = scores.steadiness
    return {
        **flat(scores.means),
        "lpips": scores.means["whole"].get("lpips"),
        "steadiness": still.ratio,
        "steadiness_pairs": still.pairs,
        "steadiness_rendered_change": still.rendered,
        "steadiness_footage_change": still.footage,
    }


def flat(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """Figures by region and metric, the region before the metric; none before that of the whole frame."""
    return {
        metric if region == "whole" else f"{region}_{metric}": value
        for region in REGIONS
        for metric, value in values[region].items()
    }


def pictures_of(scores: Scores) -> list[dict[str, Any]]:
    """The figures of every picture, with its ``frame``."""
    return [{"frame": frame, **flat(each)} for frame, each in zip(scores.frame_ids, scores.each, strict=True)]


def protocol_of(
    clip: str, facts: dict[str, str], total: int, measured: Sequence[Observation], holdout: float, size: int, lpips: str
) -> dict[str, Any]:
    """How the figures came about: clip, split, crop, tracker, and what every evaluation has in common."""
    frames = [observation.frame_id for observation in measured]
    span = f"{frames[0]} to {frames[-1]}" if frames else "none"
    return {
        "clip": clip,
        "split": f"last {holdout:.4g} of the tracked pictures held out: {len(frames)} of {total}, frames {span}",
        **facts,
        "size": size,
        **PROTOCOL,
        "lpips": lpips,
        "version": f"telepresence {__version__}",
    }


def training(seconds: float, steps: int, backend: str | None) -> str:
    """How long an avatar was learned, for the protocol."""
    by = f"by the {backend} back end" if backend else "by a back end that is not told"
    return f"{seconds:g} s of training alone (loading, compiling and measuring do not count), {steps} steps, {by}"


def without_nan(value: Any) -> Any:
    """``value`` as JSON can say it: numbers rounded to four digits, None for what is no number."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list) else value


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table, and the protocol under it."""
    from rich.console import Console

    console = Console()
    protocol = figures["protocol"]
    console.print(_table(figures))
    pairs = figures["steadiness_pairs"]
    console.print(
        f"steadiness {words(figures['steadiness'], 2)}: change of the rendered picture, in parts of the footage's, "
        f"in {pairs} pairs of still pictures"
        if pairs
        else "steadiness: none, as no two successive pictures are still"
    )
    lines = [f"LPIPS {words(figures['lpips'], 4)} ({protocol['lpips']})"]
    lines += [f"{name}: {figures[name]}" for name in ("seconds", "steps", "backend", "device") if name in figures]
    lines += [f"{name}: {text}" for name, text in protocol.items()]
    for line in lines:
        console.print(line, style="dim", markup=False, highlight=False)


def words(value: float | None, digits: int) -> str:
    """A figure for people; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _table(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("", *REGIONS)
    for metric, title, digits in zip(METRICS, ("PSNR, dB", "SSIM", "FLIP"), (2, 4, 4), strict=True):
        names = [metric if region == "whole" else f"{region}_{metric}" for region in REGIONS]
        table.add_row(title, *(words(figures[name], digits) for name in names))
    return table

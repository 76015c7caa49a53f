"""Figures of an avatar as `fit` and `evaluate` print and store them, with the protocol of their measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from insta_runtime.evaluation.protocol import METRICS, PROTOCOL, REGIONS, Perceptual, Scores
from insta_runtime.types import Observation
from telepresence import __version__

if TYPE_CHECKING:
    import torch
    from rich.table import Table

ALEXNET: Final = "alexnet-owt-*.pth"
"""File name of torchvision's AlexNet weights, which LPIPS is built on."""


@dataclass(frozen=True)
class Lpips:
    """LPIPS (Zhang et al. 2018), if its package and weights are installed; nothing is ever downloaded.

    Attributes:
        measure: function that returns the distance of two images; None if LPIPS is not available.
        description: the version of LPIPS that is used, or why it is not available.
    """

    measure: Perceptual | None
    description: str

    @staticmethod
    def load(device: torch.device) -> Lpips:
        """Load LPIPS onto ``device`` if it is installed."""
        import torch

        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if not any(folder.glob(ALEXNET)):
            return Lpips(None, f"not measured: its weights ({ALEXNET}) are not among torch's checkpoints")
        try:
            import lpips

            network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
        except (ImportError, RuntimeError, OSError) as error:  # not installed, or built for another version of torch
            return Lpips(None, f"not measured: the package lpips cannot be used ({error})")

        @torch.no_grad()
        def measure(rendered: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            first, second = (2.0 * image.permute(2, 0, 1)[None] - 1.0 for image in (rendered, truth))
            return network(first, second).flatten()[0]

        return Lpips(measure, "AlexNet, version 0.1, whole frame")


def figures_of(scores: Scores) -> dict[str, Any]:
    """Figures of an evaluation as one flat dictionary: ``psnr_db``, ``ssim``, ``flip``, ``lpips``, ``steadiness``.

    Those of a region have its name before them: ``head_psnr_db``, ``mouth_ssim``, ``eyes_flip``.
    """
    still = scores.steadiness
    return {
        **flatten(scores.means),
        "lpips": scores.means["whole"].get("lpips"),
        "steadiness": still.ratio,
        "steadiness_pairs": still.pairs,
        "steadiness_rendered_change": still.rendered,
        "steadiness_footage_change": still.footage,
    }


def flatten(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """Figures by region and metric with keys ``region_metric``; those of the whole frame have ``metric`` alone."""
    return {
        metric if region == "whole" else f"{region}_{metric}": value
        for region in REGIONS
        for metric, value in values[region].items()
    }


def figures_of_frames(scores: Scores) -> list[dict[str, Any]]:
    """Figures of every measured frame, as in `figures_of`, with its id under ``frame``."""
    return [{"frame": frame, **flatten(each)} for frame, each in zip(scores.frame_ids, scores.each, strict=True)]


def protocol_of(
    clip: str, facts: dict[str, str], total: int, measured: Sequence[Observation], holdout: float, size: int, lpips: str
) -> dict[str, Any]:
    """Protocol of a measurement: clip, split, crop, tracker, and the rules that all evaluations share.

    ``facts`` are those of the recording, ``total`` its number of tracked frames, ``measured`` the frames that the
    figures were measured on at ``size`` pixels, ``holdout`` their fraction, ``lpips`` the description of `Lpips`.
    """
    frames = [observation.frame_id for observation in measured]
    span = f"{frames[0]} to {frames[-1]}" if frames else "none"
    return {
        "clip": clip,
        "split": f"last {holdout:.4g} of the tracked frames held out: {len(frames)} of {total}, frames {span}",
        **facts,
        "size": size,
        **PROTOCOL,
        "lpips": lpips,
        "version": f"telepresence {__version__}",
    }


def training_note(seconds: float, steps: int, backend: str | None) -> str:
    """Duration, steps and backend of a training in words, for the protocol; ``backend`` None if it is unknown."""
    by = f"by the {backend} backend" if backend else "by an unknown backend"
    return f"{seconds:g} s of training alone (loading, compiling and measuring do not count), {steps} steps, {by}"


def without_nan(value: Any) -> Any:
    """``value`` ready for JSON: floats rounded to four decimals, NaN and infinities replaced by None, at any depth."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list) else value


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures of `fit` or `evaluate` as a table, and their protocol below it."""
    from rich.console import Console

    console = Console()
    protocol = figures["protocol"]
    console.print(_table(figures))
    pairs = figures["steadiness_pairs"]
    console.print(
        f"steadiness {format_figure(figures['steadiness'], 2)}: change between rendered frames, relative to the "
        f"footage's, in {pairs} pairs of frames without motion"
        if pairs
        else "steadiness: none, as no two successive frames are without motion"
    )
    lines = [f"LPIPS {format_figure(figures['lpips'], 4)} ({protocol['lpips']})"]
    lines += [f"{name}: {figures[name]}" for name in ("seconds", "steps", "backend", "device") if name in figures]
    lines += [f"{name}: {text}" for name, text in protocol.items()]
    for line in lines:
        console.print(line, style="dim", markup=False, highlight=False)


def format_figure(value: float | None, digits: int) -> str:
    """A figure with ``digits`` decimals; a dash if it is None or not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _table(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("", *REGIONS)
    for metric, title, digits in zip(METRICS, ("PSNR, dB", "SSIM", "FLIP"), (2, 4, 4), strict=True):
        names = [metric if region == "whole" else f"{region}_{metric}" for region in REGIONS]
        table.add_row(title, *(format_figure(figures[name], digits) for name in names))
    return table

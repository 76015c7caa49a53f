"""HTML report of an avatar: figures, a film, frames side by side with their errors, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from markupsafe import Markup

from insta_runtime.errors import UserError
from insta_runtime.evaluation.flip import flip_map
from insta_runtime.evaluation.protocol import METRICS, REGIONS, FrameComparison, Render, compare
from insta_runtime.evaluation.regions import FaceRegions
from insta_runtime.types import Bytes, Observation
from telepresence.measure.report.charts import Curve, chart
from telepresence.measure.report.images import HEAT, OUTLINES, film, heat, jpeg, outlines, shrunk, to_bytes
from telepresence.measure.report.templates import render_template

SPREAD_FRAMES: Final = 6
"""Number of frames, spread over the held-out part, that the report shows large."""
WORST_FRAMES: Final = 4
"""Number of frames with the lowest PSNR that the report shows large."""
FILM_SIDE: Final = 288
"""Maximum side in pixels of each image of the film."""
FILM_FRAMES: Final = 150
"""Maximum number of frames of the film."""

CARDS: Final = (
    ("whole frame", "psnr_db", 2, "dB"),
    ("head", "head_psnr_db", 2, "dB"),
    ("mouth", "mouth_psnr_db", 2, "dB"),
    ("eyes", "eyes_psnr_db", 2, "dB"),
    ("SSIM", "ssim", 3, ""),
    ("FLIP", "flip", 3, ""),
    ("steadiness", "steadiness", 2, "×"),  # noqa: RUF001 - a multiplication sign is meant
)
"""Figures at the top of the report: label, key, decimals, unit."""
FACTS: Final = (
    ("whole", "psnr_db", 1),
    ("head", "head_psnr_db", 1),
    ("mouth", "mouth_psnr_db", 1),
    ("eyes", "eyes_psnr_db", 1),
    ("SSIM", "ssim", 3),
    ("FLIP", "flip", 3),
)
"""Figures below each frame that is shown large: label, key, decimals."""

Figures = dict[str, Any]
"""Figures of `fit` or `evaluate`, or of one frame."""


def write_report(
    path: Path,
    figures: Figures,
    render: Render,
    observations: Sequence[Observation],
    size: int,
    face: FaceRegions,
    device: torch.device,
    fps: float,
) -> None:
    """Write the report of an avatar as one HTML file without external resources.

    Args:
        path: the file to write.
        figures: figures of `fit` or `evaluate`.
        render: renders a head state; all observations are rendered once more.
        observations: the frames that were measured, in the order of ``figures["each"]``.
        size: side in pixels of the compared images.
        face: regions of mouth and eyes.
        device: device of the comparison.
        fps: frames per second of the film.

    Raises UserError if the file cannot be written.
    """
    each = figures["each"]
    chosen = _choose(each)
    images = _ImageCollector()
    for number, compared in enumerate(compare(render, observations, size, face, device)):
        images.add(compared, large=number in chosen)

    def moments(worst: bool) -> list[dict[str, Any]]:
        numbers = [number for number in chosen if chosen[number] is worst]
        return [{"figures": each[number], "images": images.large[each[number]["frame"]]} for number in numbers]

    page = render_template(
        "page.html",
        figures=figures,
        title=figures["protocol"]["clip"],
        figure=_format,
        cards=CARDS,
        facts=FACTS,
        film=film(images.film, fps) if images.film else None,
        fps=fps,
        curve=_curve(figures),
        timeline=_timeline(figures),
        spread=moments(worst=False),
        worst=moments(worst=True),
        mean=images.means(),
        heat=HEAT,
        outlines=OUTLINES,
        regions=REGIONS,
        table=_table(figures),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", errors="replace")  # file names need not be UTF-8
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}; choose another --report") from None


def _choose(each: Sequence[Figures]) -> dict[int, bool]:
    """Numbers of the frames that are shown large, and whether as one of the worst, which lie at some distance."""
    count = len(each)
    shown = min(SPREAD_FRAMES, count)
    even = [round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)]
    chosen = dict.fromkeys(even, False)
    ranked = sorted(
        (n for n in range(count) if each[n]["head_psnr_db"] is not None), key=lambda n: each[n]["head_psnr_db"]
    )
    apart = max(2, count // 12)
    worst: list[int] = []
    for number in ranked:
        if len(worst) < WORST_FRAMES and number not in chosen and all(abs(number - other) >= apart for other in worst):
            worst.append(number)
    return chosen | dict.fromkeys(worst, True)


@dataclass(frozen=True)
class _LargeImages:
    """Data URIs of the images of one frame that is shown large."""

    truth: str
    avatar: str
    flip: str
    outlines: str


class _ImageCollector:
    """Collects the images of a report while the frames are compared one after the other.

    Attributes:
        film: truth, avatar and error side by side, for the film.
        large: images of the frames that are shown large, by frame id.
    """

    def __init__(self) -> None:
        self.film: list[Bytes] = []
        self.large: dict[int, _LargeImages] = {}
        self._errors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._last_id: int | None = None
        self._interrupted = False

    def add(self, compared: FrameComparison, *, large: bool) -> None:
        """Add one compared frame; the film ends at the first gap between frame ids."""
        error = flip_map(compared.picture, compared.truth)
        frame = compared.observation.frame_id
        self._interrupted |= self._last_id is not None and frame != self._last_id + 1
        self._last_id = frame
        if len(self.film) < FILM_FRAMES and not self._interrupted:
            panels = [shrunk(p, FILM_SIDE) for p in (compared.truth, compared.picture, error[..., None])]
            beside = (to_bytes(panels[0]), to_bytes(panels[1]), heat(panels[2][..., 0]))
            self.film.append(np.concatenate(beside, axis=1))
        if not self._errors or self._errors[0][0].shape == error.shape:
            self._errors.append((error.cpu(), compared.truth.cpu()))
        if large:
            self.large[frame] = _LargeImages(
                jpeg(to_bytes(compared.truth)), jpeg(to_bytes(compared.picture)), jpeg(heat(error)), outlines(compared)
            )

    def means(self) -> list[tuple[str, str]]:
        """Mean of the footage and mean error over all frames: data URI and caption; empty without frames."""
        if not self._errors:
            return []
        error, truth = (torch.stack(images).mean(0) for images in zip(*self._errors, strict=True))
        return [(jpeg(to_bytes(truth)), "mean of the footage"), (jpeg(heat(error)), "mean FLIP error")]


def _format(value: float | None, digits: int) -> str:
    """A figure with ``digits`` decimals; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - a dash is meant


def _curve(figures: Figures) -> Markup:
    """Chart of PSNR over seconds of training; empty without at least two points."""
    points = figures.get("curve") or []
    if len(points) < 2:
        return Markup()
    curves = [
        Curve(name, [(point["seconds"] or 0.0, point.get(key)) for point in points])
        for name, key in (("whole", "psnr_db"), ("head", "head_psnr_db"))
    ]
    return chart(curves, "seconds of training", "dB", logarithmic=True)


def _timeline(figures: Figures) -> Markup:
    """Chart of PSNR over frames, by region."""
    names = ("psnr_db", *(f"{region}_psnr_db" for region in REGIONS[1:]))
    curves = [
        Curve(region, [(frame["frame"], frame[name]) for frame in figures["each"]])
        for region, name in zip(REGIONS, names, strict=True)
    ]
    return chart(curves, "frame", "dB")


def _table(figures: Figures) -> list[dict[str, Any]]:
    """Rows of the table of figures: ``title``, ``cells`` by region, and whether they are a comparison (``beside``)."""
    rows: list[dict[str, Any]] = []
    for metric, (title, digits) in zip(METRICS, (("PSNR, dB", 2), ("SSIM", 4), ("FLIP", 4)), strict=True):
        names = [metric if region == "whole" else f"{region}_{metric}" for region in REGIONS]
        rows.append({"title": title, "cells": [_format(figures[name], digits) for name in names], "beside": False})
    compared = [
        ("frames learned from: PSNR, dB", "train_psnr_db", "train_head_psnr_db"),
        ("coloured mesh: PSNR, dB", "mesh_psnr_db", "mesh_head_psnr_db"),
    ]
    for title, whole, head in compared:
        if figures.get(whole) is not None:
            cells = [_format(figures[whole], 2), _format(figures[head], 2), "", ""]
            rows.append({"title": title, "cells": cells, "beside": True})
    for name in figures:
        if name.startswith("unseen_"):
            view = name.removesuffix("_psnr_db").replace("_", " ")
            cells = [_format(figures[name], 2), "", "", ""]
            rows.append({"title": f"{view}: PSNR, dB", "cells": cells, "beside": True})
    return rows

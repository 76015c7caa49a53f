"""The page that shows a person how good an avatar is: figures, a film, pictures side by side, errors, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import torch

from insta_runtime.errors import UserError
from insta_runtime.evaluation.flip import flip_map
from insta_runtime.evaluation.protocol import METRICS, REGIONS, FrameComparison, Render, compare
from insta_runtime.evaluation.regions import FaceRegions
from insta_runtime.types import Bytes, Observation
from telepresence.measure.report.charts import Curve, chart
from telepresence.measure.report.images import HEAT, OUTLINES, film, heat, jpeg, outlines, shrunk, to_bytes

TEMPLATE = Path(__file__).with_name("page.html")
SPREAD, WORST = 6, 4  # pictures shown large
FILM_SIDE, FILM_FRAMES = 288, 150
Figures = dict[str, Any]


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
    """Write one HTML file that needs nothing else, about ``figures`` as `fit` and `evaluate` make them.

    ``observations`` are the pictures that were measured, in the order of ``figures["each"]``; they are rendered once
    more.  Raises UserError if the page cannot be written.
    """
    chosen = _choose(figures["each"])
    seen = _Seen()
    for number, compared in enumerate(compare(render, observations, size, face, device)):
        seen.take(compared, figures["each"][number] if number in chosen else None)
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(_clip(figures)),
        subtitle=escape(_subtitle(figures)),
        cards=_cards(figures),
        film=f'<img class="film" src="{film(seen.film, fps)}" alt="truth, avatar and FLIP, in motion">'
        if seen.film
        else "",
        fps=f"{fps:g}",
        curve=_curve(figures),
        timeline=_timeline(figures),
        spread=_strips(seen.strips, [n for n in chosen if not chosen[n]], figures["each"]),
        worst=_strips(seen.strips, [n for n in chosen if chosen[n]], figures["each"]),
        mean=seen.mean_map(),
        ramp=", ".join(HEAT),
        table=_table(figures),
        protocol="".join(
            f"<dt>{escape(name)}</dt><dd>{escape(str(text))}</dd>" for name, text in figures["protocol"].items()
        ),
        **{f"colour_{name}": colour for name, colour in OUTLINES.items()},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}") from None


def _choose(each: Sequence[Figures]) -> dict[int, bool]:
    """Which pictures are shown, and whether as one of the worst: the lowest PSNR in the head, at some distance."""
    count = len(each)
    even = [round(i * (count - 1) / max(1, min(SPREAD, count) - 1)) for i in range(min(SPREAD, count))]
    chosen = dict.fromkeys(even, False)
    ranked = sorted(
        (n for n in range(count) if each[n]["head_psnr_db"] is not None), key=lambda n: each[n]["head_psnr_db"]
    )
    apart = max(2, count // 12)
    worst: list[int] = []
    for number in ranked:
        if len(worst) < WORST and number not in chosen and all(abs(number - other) >= apart for other in worst):
            worst.append(number)
    return chosen | dict.fromkeys(worst, True)


@dataclass(frozen=True)
class _Strip:
    """Sources of the pictures of one moment."""

    truth: str
    avatar: str
    flip: str
    outlines: str


class _Seen:
    """What is kept of the pictures as they pass by."""

    def __init__(self) -> None:
        self.film: list[Bytes] = []
        self.strips: dict[int, _Strip] = {}
        self._errors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._last_id: int | None = None
        self._torn = False

    def take(self, compared: FrameComparison, shown: Figures | None) -> None:
        error = flip_map(compared.picture, compared.truth)
        frame = compared.observation.frame_id
        self._torn |= self._last_id is not None and frame != self._last_id + 1
        self._last_id = frame
        if len(self.film) < FILM_FRAMES and not self._torn:
            panels = [shrunk(p, FILM_SIDE) for p in (compared.truth, compared.picture, error[..., None])]
            self.film.append(_beside(to_bytes(panels[0]), to_bytes(panels[1]), heat(panels[2][..., 0])))
        if not self._errors or self._errors[0][0].shape == error.shape:
            self._errors.append((error.cpu(), compared.truth.cpu()))
        if shown is not None:
            self.strips[shown["frame"]] = _Strip(
                jpeg(to_bytes(compared.truth)), jpeg(to_bytes(compared.picture)), jpeg(heat(error)), outlines(compared)
            )

    def mean_map(self) -> str:
        """Where the error lies over all pictures, beside their mean; nothing without pictures."""
        if not self._errors:
            return ""
        error, truth = (torch.stack(some).mean(0) for some in zip(*self._errors, strict=True))
        pictures = ((to_bytes(truth), "mean of the footage"), (heat(error), "mean FLIP error"))
        return "".join(
            f'<figure><img src="{jpeg(rgb)}" alt="{text}"><figcaption>{text}</figcaption></figure>'
            for rgb, text in pictures
        )


def _beside(*pictures: Bytes) -> Bytes:
    import numpy as np

    joined: Bytes = np.concatenate(pictures, axis=1)
    return joined


def _clip(figures: Figures) -> str:
    return str(figures["protocol"]["clip"])


def _subtitle(figures: Figures) -> str:
    return (
        f"An avatar after {figures['seconds']:g} s of training, measured on {len(figures['each'])} pictures "
        f"of {figures['size']} px from the end of the recording"
    )


def _cards(figures: Figures) -> str:
    wanted = (
        ("whole frame", "psnr_db", 2, "dB"),
        ("head", "head_psnr_db", 2, "dB"),
        ("mouth", "mouth_psnr_db", 2, "dB"),
        ("eyes", "eyes_psnr_db", 2, "dB"),
        ("SSIM", "ssim", 3, ""),
        ("FLIP", "flip", 3, ""),
        ("steadiness", "steadiness", 2, "&times;"),
    )
    return "".join(
        f'<div class="card"><b>{_number(figures.get(key), digits)}</b><i>{unit}</i><span>{title}</span></div>'
        for title, key, digits, unit in wanted
    )


def _number(value: float | None, digits: int) -> str:
    return "&ndash;" if value is None else f"{value:.{digits}f}"


def _curve(figures: Figures) -> str:
    points = figures.get("curve") or []
    lines = [
        Curve(name, [(point["seconds"] or 0.0, point.get(key)) for point in points])
        for name, key in (("whole", "psnr_db"), ("head", "head_psnr_db"))
    ]
    drawn = chart(lines, "seconds of training", "dB", logarithmic=True) if len(points) > 1 else ""
    return drawn or "<p class=none>No curve is stored with this avatar.</p>"


def _timeline(figures: Figures) -> str:
    each = figures["each"]
    names = ("psnr_db", *(f"{region}_psnr_db" for region in REGIONS[1:]))
    lines = [
        Curve(region, [(picture["frame"], picture[name]) for picture in each])
        for region, name in zip(REGIONS, names, strict=True)
    ]
    return chart(lines, "frame", "dB")


def _strips(strips: dict[int, _Strip], numbers: Sequence[int], each: Sequence[Figures]) -> str:
    rows = []
    for number in numbers:
        figures = each[number]
        frame = figures["frame"]
        strip = strips[frame]
        facts = " &middot; ".join(
            f"{title} <b>{_number(figures[key], digits)}</b>"
            for title, key, digits in (
                ("whole", "psnr_db", 1),
                ("head", "head_psnr_db", 1),
                ("mouth", "mouth_psnr_db", 1),
                ("eyes", "eyes_psnr_db", 1),
                ("SSIM", "ssim", 3),
                ("FLIP", "flip", 3),
            )
        )
        rows.append(
            f'<figure class="strip" tabindex="0"><div>'
            f'<span><img src="{strip.truth}" alt="truth" data-name="truth">'
            f'<img class="regions" src="{strip.outlines}" alt="regions"></span>'
            f'<span><img src="{strip.avatar}" alt="avatar" data-name="avatar"></span>'
            f'<span><img src="{strip.flip}" alt="FLIP error" data-name="FLIP"></span>'
            f"</div><figcaption>frame {frame} &middot; {facts}</figcaption></figure>"
        )
    return "".join(rows) or "<p class=none>There are none.</p>"


def _table(figures: Figures) -> str:
    titles = dict(zip(METRICS, (("PSNR, dB", 2), ("SSIM", 4), ("FLIP", 4)), strict=True))
    head = "".join(f"<th>{region}</th>" for region in REGIONS)
    rows = []
    for metric, (title, digits) in titles.items():
        names = [metric if region == "whole" else f"{region}_{metric}" for region in REGIONS]
        cells = "".join(f"<td>{_number(figures[name], digits)}</td>" for name in names)
        rows.append(f"<tr><th>{title}</th>{cells}</tr>")
    beside = (
        ("on pictures learned from: PSNR, dB", "train_psnr_db", "train_head_psnr_db"),
        ("the coloured mesh: PSNR, dB", "mesh_psnr_db", "mesh_head_psnr_db"),
    )
    for title, whole, head_name in beside:
        if figures.get(whole) is not None:
            cells = f"<td>{_number(figures[whole], 2)}</td><td>{_number(figures[head_name], 2)}</td><td></td><td></td>"
            rows.append(f'<tr class="beside"><th>{title}</th>{cells}</tr>')
    for name in figures:
        if name.startswith("unseen_"):
            title = escape(name.removesuffix("_psnr_db").replace("_", " "))
            cells = f"<td>{_number(figures[name], 2)}</td><td></td><td></td><td></td>"
            rows.append(f'<tr class="beside"><th>{title}: PSNR, dB</th>{cells}</tr>')
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

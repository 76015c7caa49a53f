"""Curves of a report, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 84, 14, 34
LABEL_GAP = 15  # pixels between the labels of two lines


@dataclass(frozen=True)
class Curve:
    """A curve: its name, which is also its CSS class, and its points; a point without a value is left out."""

    name: str
    points: Sequence[tuple[float, float | None]]

    @property
    def known(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def chart(lines: Sequence[Curve], x_title: str, unit: str, *, logarithmic: bool = False) -> str:
    """Curves over a common axis; each point tells its value when it is pointed at.  Nothing without any point."""
    drawn = [line for line in lines if line.known]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.known]
    ys = [y for line in drawn for _, y in line.known]
    if logarithmic:
        xs = [x for x in xs if x > 0.0] or [1.0]
    across, up = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, logarithmic), _nice_axis(min(ys), max(ys))
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(x_title, quote=True)}">'
    ]
    for value in up.ticks():
        y = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in across.ticks():
        x = across(value)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text class="title" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_title)}</text>')
    parts.append(f'<text class="title" x="4" y="{TOP - 3}">{escape(unit)}</text>')
    for line in drawn:
        places = [(across(x), up(y), x, y) for x, y in line.known if x > 0.0 or not logarithmic]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
        parts.append(f'<g class="line {escape(line.name, quote=True)}"><polyline points="{path}"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2.6 if len(places) < 40 else 1.6}">'
            f"<title>{escape(line.name)} {value:.2f} {escape(unit)} at {at:g}</title></circle>"
            for x, y, at, value in places
        ]
        parts.append("</g>")
    for line, y in _labels(drawn, up):
        x, value = WIDTH - RIGHT + 8, line.known[-1][1]
        parts.append(f'<text class="label {escape(line.name, quote=True)}" x="{x}" y="{y + 4:.1f}">')
        parts.append(f"{escape(line.name)} {value:.1f}</text>")
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Axis:
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        part = 0.5 if high == low else (value - low) / (high - low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
            return [value for value in every if self.low <= value <= self.high] or [self.low]
        step = _nice_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _nice_step(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides ``span`` into about five."""
    raw = max(span, 1e-9) / 5.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)


def _nice_axis(low: float, high: float) -> _Axis:
    """The vertical axis, from tick to tick."""
    step = _nice_step(max(high - low, 1.0))
    return _Axis(math.floor(low / step) * step, math.ceil(high / step) * step, HEIGHT - BOTTOM, TOP)


def _labels(lines: Sequence[Curve], up: _Axis) -> list[tuple[Curve, float]]:
    """Where the lines' names stand: beside their ends, one below the other."""
    placed: list[tuple[Curve, float]] = []
    for line in sorted(lines, key=lambda line: -line.known[-1][1]):
        y = up(line.known[-1][1])
        placed.append((line, max(y, placed[-1][1] + LABEL_GAP) if placed else y))
    return placed

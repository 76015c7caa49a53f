"""Curves of a report, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from telepresence.measure.report.templates import render_template

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 84, 14, 34
LABEL_GAP: Final = 15
"""Minimum distance in pixels between the labels of two curves."""
MANY_POINTS: Final = 40
"""Number of points from which on a curve has smaller dots."""


@dataclass(frozen=True)
class Curve:
    """One curve of a chart: its name, which is also its CSS class, and its points; a value may be missing."""

    name: str
    points: Sequence[tuple[float, float | None]]

    @property
    def known(self) -> list[tuple[float, float]]:
        """Points that have a finite value."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def chart(curves: Sequence[Curve], x_title: str, unit: str, *, logarithmic: bool = False) -> Markup:
    """Chart of several curves over a common axis, as SVG; the tooltip of each point shows its value.

    ``logarithmic`` is for the horizontal axis.  Empty if no curve has a point.
    """
    drawn = [curve for curve in curves if curve.known]
    if not drawn:
        return Markup()
    xs = [x for curve in drawn for x, _ in curve.known]
    ys = [y for curve in drawn for _, y in curve.known]
    if logarithmic:
        xs = [x for x in xs if x > 0.0] or [1.0]
    across, up = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, logarithmic), _round_axis(min(ys), max(ys))
    return render_template(
        "chart.svg",
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
        x_title=x_title,
        unit=unit,
        rows=[(value, up(value)) for value in up.ticks()],
        columns=[(value, across(value)) for value in across.ticks()],
        curves=[_placed(curve, across, up) for curve in drawn],
        labels=[(curve.name, curve.known[-1][1], y) for curve, y in _labels(drawn, up)],
    )


def _placed(curve: Curve, across: _Axis, up: _Axis) -> dict[str, Any]:
    """A curve with the places of its points in the chart, for the template."""
    places = [
        {"x": across(x), "y": up(y), "at": x, "value": y} for x, y in curve.known if x > 0.0 or not across.logarithmic
    ]
    return {"name": curve.name, "places": places, "radius": 2.6 if len(places) < MANY_POINTS else 1.6}


@dataclass(frozen=True)
class _Axis:
    """One axis of a chart: converts values to pixels."""

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
        step = _round_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(span: float) -> float:
    """Step between ticks, 1, 2 or 5 times a power of ten, that divides ``span`` into about five."""
    raw = max(span, 1e-9) / 5.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)


def _round_axis(low: float, high: float) -> _Axis:
    """Vertical axis that starts and ends at a tick."""
    step = _round_step(max(high - low, 1.0))
    return _Axis(math.floor(low / step) * step, math.ceil(high / step) * step, HEIGHT - BOTTOM, TOP)


def _labels(curves: Sequence[Curve], up: _Axis) -> list[tuple[Curve, float]]:
    """Vertical positions of the curves' labels, beside their ends and without overlap."""
    placed: list[tuple[Curve, float]] = []
    for curve in sorted(curves, key=lambda curve: -curve.known[-1][1]):
        y = up(curve.known[-1][1])
        placed.append((curve, max(y, placed[-1][1] + LABEL_GAP) if placed else y))
    return placed

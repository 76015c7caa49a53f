"""Bounds of a figure: what it must reach, and the aim; and summaries of many values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Figures = dict[str, Any]
"""Figures of one measurement, as they are written to JSON."""


@dataclass(frozen=True)
class Goal:
    """A measured ``value`` with its bounds: ``must`` is required, ``aim`` is better.

    ``least`` makes both of them lower bounds; otherwise they are upper bounds.
    """

    name: str
    value: float | None
    must: float
    aim: float
    unit: str = ""
    least: bool = False

    @property
    def met(self) -> str:
        """The strictest bound that the value keeps: ``aim``, ``must`` or ``none``."""
        if self.value is None:
            return "none"
        sign = -1.0 if self.least else 1.0
        return next((name for name in ("aim", "must") if sign * self.value <= sign * getattr(self, name)), "none")

    def __str__(self) -> str:
        value = "nothing" if self.value is None else f"{self.value:g}{self.unit}"
        word = "at least" if self.least else "at most"
        outcome = {"aim": "aim met", "must": f"must met, aim {self.aim:g}", "none": f"MISSED: {word} {self.must:g}"}
        return f"{self.name} {value} ({outcome[self.met]})"

    def figures(self) -> Figures:
        """The goal and its outcome, for JSON."""
        return {**asdict(self), "met": self.met}


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Percentile by linear interpolation, rounded to 0.1; None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100.0
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return round(ordered[low] + (ordered[high] - ordered[low]) * (at - low), 1)


def spread(values: Sequence[float]) -> Figures:
    """Median, 95th percentile, maximum and number of values."""
    return {
        "p50": percentile(values, 50.0),
        "p95": percentile(values, 95.0),
        "max": round(max(values), 1) if values else None,
        "count": len(values),
    }


def median(values: Sequence[float], digits: int = 1) -> float | None:
    """Median, rounded to ``digits`` decimal places; None if there are no values."""
    return round(statistics.median(values), digits) if values else None

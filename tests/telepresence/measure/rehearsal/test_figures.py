"""Figures of a rehearsed call: intervals, trends, and the first moment with a good likeness."""

from __future__ import annotations

import pytest

from telepresence.measure.rehearsal.figures import curve_point, intervals, seconds_to
from telepresence.measure.rehearsal.resources import trend


def test_intervals_begin_when_the_call_has_settled() -> None:
    times = [0.0, 3.0, 5.0, 5.1, 5.2, 5.4, 9.0]  # the last one after the end of the call
    found = intervals(times, 0.0, 8.0)
    assert found is not None
    longest = found.pop("longest")
    assert found == pytest.approx({"p50": 100.0, "p99": 198.0, "max": 200.0, "count": 3})
    assert longest[0] == pytest.approx([5.2, 200.0])
    assert intervals(times, 0.3, 8.0) is None


def test_a_trend_has_a_slope_if_it_was_sampled_long_enough() -> None:
    grows = trend([(second, 100.0 + second / 36.0) for second in range(0, 200, 2)])
    assert grows["slope_per_hour"] == pytest.approx(100.0)
    assert grows["end"] == grows["max"] == pytest.approx(105.5)
    settled = trend([(second, min(second, 50.0)) for second in range(0, 200, 2)])
    assert settled["slope_per_hour"] == pytest.approx(0.0, abs=1e-6), "growth in the first half does not count"
    assert trend([(0.0, 1.0), (10.0, 2.0)])["slope_per_hour"] is None


def test_a_good_likeness_counts_only_if_it_was_shown() -> None:
    points = [
        {"seconds": 1.0, "psnr_db": 23.0, "avatar_shown": False},
        {"seconds": 2.0, "psnr_db": 20.0, "avatar_shown": True},
        {"seconds": 3.0, "psnr_db": 22.5, "avatar_shown": True},
    ]
    assert seconds_to(points, 22.0, 0.5) == 2.5
    assert seconds_to(points, 24.0, 0.5) is None
    assert seconds_to(points, 22.0, None) is None
    assert curve_point(points, 2.0) is points[1]
    assert curve_point(points, 2.5) is None

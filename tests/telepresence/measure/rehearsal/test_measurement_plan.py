"""Moments of a rehearsed call that are measured, and the weights and observations that this needs."""

from __future__ import annotations

import pytest

from telepresence.measure.rehearsal.measurement_plan import LATER_POINTS, NEXT_S, SPACING_S, MeasurementPlan


@pytest.mark.parametrize("seconds", [1.0, 10.0, 42.0, 60.0, 480.0, 7200.0])
def test_moments_lie_in_the_call_and_end_with_it(seconds: float) -> None:
    plan = MeasurementPlan.of(seconds)
    assert list(plan.moments) == sorted(set(plan.moments))
    assert plan.moments[-1] == seconds
    assert plan.early in plan.moments
    assert all((headline in plan.moments) == (headline <= seconds) for headline in (10.0, 60.0))
    assert len(plan.moments) < LATER_POINTS + 24


def test_weights_are_kept_that_are_the_newest_at_a_moment() -> None:
    plan = MeasurementPlan.of(60.0)
    assert plan.wants_weights(9.7, 10.4)
    assert plan.wants_weights(10.0, 10.4)
    assert not plan.wants_weights(9.2, 10.0), "newer weights replaced them at ten seconds"
    assert not plan.wants_weights(10.1, 11.9)
    assert plan.wants_weights(59.0, float("inf"))


def test_observations_are_kept_that_follow_a_moment() -> None:
    plan = MeasurementPlan.of(60.0)
    never = float("-inf")
    assert plan.wants_observation(25.5, never)
    assert not plan.wants_observation(28.0, never), "not within two seconds of a moment"
    assert not plan.wants_observation(0.2, never), "before the first moment"
    assert not plan.wants_observation(25.5, 25.5 - 0.5 * SPACING_S)
    assert plan.wants_observation(10.5, 10.5 - 0.5 * SPACING_S), "every observation counts after a headline moment"
    assert plan.wants_observation(60.0 + NEXT_S, never)
    assert not plan.wants_observation(60.1 + NEXT_S, never)

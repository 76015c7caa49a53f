"""Which moments of a call are measured, and what is kept for that."""

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


def test_weights_are_wanted_that_are_the_newest_at_a_moment() -> None:
    plan = MeasurementPlan.of(60.0)
    assert plan.wants_weights(9.7, 10.4)
    assert plan.wants_weights(10.0, 10.4)
    assert not plan.wants_weights(9.2, 10.0), "at ten seconds they have been replaced"
    assert not plan.wants_weights(10.1, 11.9)
    assert plan.wants_weights(59.0, float("inf"))


def test_pictures_are_wanted_that_follow_a_moment() -> None:
    plan = MeasurementPlan.of(60.0)
    never = float("-inf")
    assert plan.wants_observation(25.5, never)
    assert not plan.wants_observation(28.0, never), "no moment is near"
    assert not plan.wants_observation(0.2, never), "no moment has been yet"
    assert not plan.wants_observation(25.5, 25.5 - 0.5 * SPACING_S)
    assert plan.wants_observation(10.5, 10.5 - 0.5 * SPACING_S), "after a headline every picture counts"
    assert plan.wants_observation(60.0 + NEXT_S, never)
    assert not plan.wants_observation(60.1 + NEXT_S, never)

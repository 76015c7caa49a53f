"""Loops that keep a rate, by a clock that stands still but for them."""

from __future__ import annotations

import threading

import pytest

from telepresence.runtime.clock import LoopTimer


class Time(threading.Event):
    """A clock, and an event whose waiting is all that moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert timeout >= 0.0
        self.now += timeout
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr("telepresence.runtime.clock.time.monotonic", lambda: clock.now)
    return clock


def rounds(pace: LoopTimer, clock: Time, works: list[float]) -> list[float]:
    """When each round began, in seconds, if they took as long as ``works`` says."""
    began = []
    for seconds in works:
        assert pace.wait(clock)
        began.append(round(clock.now - 100.0, 6))
        clock.now += seconds
    return began


def test_rounds_are_even_and_a_late_one_is_not_made_up_for(clock: Time) -> None:
    assert rounds(LoopTimer(10.0), clock, [0.01, 0.05, 0.25, 0.01, 0.0]) == [0.1, 0.2, 0.3, 0.55, 0.65]


def test_what_comes_late_lets_the_next_come_early_but_no_more_than_that(clock: Time) -> None:
    pace = LoopTimer(10.0, early=1.0)
    # The third comes a period after its time: the fourth may come at once, and then they are even again.
    assert rounds(pace, clock, [0.0, 0.5, 0.0, 0.0, 0.0]) == [0.1, 0.2, 0.7, 0.7, 0.8]


def test_a_round_that_came_to_nothing_costs_nothing(clock: Time) -> None:
    pace = LoopTimer(10.0)
    assert rounds(pace, clock, [0.0]) == [0.1]
    pace.skip()
    assert rounds(pace, clock, [0.0, 0.0]) == [0.1, 0.2]


def test_it_ends_when_told_to(clock: Time) -> None:
    clock.set()
    assert not LoopTimer(10.0).wait(clock)

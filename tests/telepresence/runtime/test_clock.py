"""Loops of a fixed rate, with a fake clock that only their waiting moves."""

from __future__ import annotations

import threading

import pytest

from telepresence.runtime.clock import LoopTimer


class Time(threading.Event):
    """Fake clock, and an event whose ``wait`` moves it."""

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
    """Second at which each round began, if the rounds take ``works`` seconds."""
    began = []
    for seconds in works:
        assert pace.wait(clock)
        began.append(round(clock.now - 100.0, 6))
        clock.now += seconds
    return began


def test_rounds_are_even_and_a_late_one_is_not_made_up_for(clock: Time) -> None:
    assert rounds(LoopTimer(10.0), clock, [0.01, 0.05, 0.25, 0.01, 0.0]) == [0.1, 0.2, 0.3, 0.55, 0.65]


def test_after_a_late_round_the_next_ones_may_come_early_by_one_period(clock: Time) -> None:
    pace = LoopTimer(10.0, early=1.0)
    # The third round is late by more than a period: the fourth may begin at once, then they are even again.
    assert rounds(pace, clock, [0.0, 0.5, 0.0, 0.0, 0.0]) == [0.1, 0.2, 0.7, 0.7, 0.8]


def test_a_skipped_round_does_not_delay_the_next(clock: Time) -> None:
    pace = LoopTimer(10.0)
    assert rounds(pace, clock, [0.0]) == [0.1]
    pace.skip()
    assert rounds(pace, clock, [0.0, 0.0]) == [0.1, 0.2]


def test_the_loop_ends_when_the_event_is_set(clock: Time) -> None:
    clock.set()
    assert not LoopTimer(10.0).wait(clock)

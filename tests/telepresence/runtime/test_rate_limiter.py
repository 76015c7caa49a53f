"""Token buckets: average rate, burst, and waiting time."""

from __future__ import annotations

import pytest

from telepresence.runtime.rate_limiter import RateLimiter


def test_events_above_the_rate_are_refused_and_a_burst_is_allowed_again_after_a_pause() -> None:
    limiter = RateLimiter(10.0, burst=10.0)
    assert sum(limiter.acquire(0.0) for _ in range(50)) == 10, "one second's worth at once"
    assert sum(limiter.acquire(0.5) for _ in range(50)) == 5
    assert sum(limiter.acquire(100.0) for _ in range(50)) == 10


def test_the_waiting_time_ends_when_the_next_event_is_allowed() -> None:
    limiter = RateLimiter(2.0, burst=1.0)
    assert limiter.wait_s(5.0) == 0.0
    assert limiter.acquire(5.0)
    assert not limiter.acquire(5.1)
    assert limiter.wait_s(5.1) == pytest.approx(0.4)
    assert not limiter.acquire(5.1 + 0.39)
    assert limiter.acquire(5.1 + 0.41)


def test_a_clock_that_goes_back_adds_nothing() -> None:
    limiter = RateLimiter(1.0, burst=1.0)
    assert limiter.acquire(10.0)
    assert not limiter.acquire(3.0)
    assert limiter.available(3.5) == pytest.approx(0.5)

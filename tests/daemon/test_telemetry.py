"""Rates, latencies, drops and the error log."""

from __future__ import annotations

from telepresence.mailbox import Mailbox
from telepresence.telemetry import MAX_ERRORS, WINDOW_S, ErrorLog, Rate, Telemetry


def test_a_rate_follows_the_events_and_falls_to_zero_when_they_stop() -> None:
    rate = Rate()
    for index in range(301):
        rate.tick(index / 30)
    assert abs(rate.read(10.0) - 30.0) < 0.5
    assert rate.read(10.0 + WINDOW_S / 2) < 20.0
    assert rate.read(10.1 + WINDOW_S) == 0.0
    assert rate.total == 301


def test_errors_are_counted_once_a_text_and_bounded() -> None:
    errors = ErrorLog()
    assert errors.record("zmq", "bad\nmessage") == 1
    assert errors.record("zmq", "bad message") == 2
    assert errors.lines() == ["zmq: bad message (2 times)"]
    for index in range(50):
        errors.record("source", f"{index} " + "x" * 10_000)
    assert len(errors.lines()) == MAX_ERRORS
    assert max(map(len, errors.lines())) < 300
    errors.clear("source")
    assert errors.lines() == []


def test_drops_and_metrics() -> None:
    telemetry, other = Telemetry(), Telemetry()
    box: Mailbox[int] = Mailbox("camera")
    telemetry.watch([box])
    box.put(1)
    box.put(2)
    telemetry.error("zmq", "bad")
    telemetry.stage("render", 0.02)
    telemetry.latency(0.05)
    assert telemetry.drops() == {"camera": 1, "zmq_error": 1}
    assert telemetry.latency_ms() == 50.0
    assert 'telepresence_stage_seconds_count{stage="render"} 1.0' in telemetry.metrics()
    assert other.drops() == {}
    assert other.latency_ms() is None

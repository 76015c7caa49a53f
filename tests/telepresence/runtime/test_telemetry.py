"""Rates, latencies, drops and the error log."""

from __future__ import annotations

import time
from typing import Any

import pytest

from telepresence.call.metrics import StatusCollector
from telepresence.runtime.mailbox import Mailbox
from telepresence.runtime.telemetry import MAX_ERRORS, WINDOW_S, DurationWindow, ErrorLog, RateCounter, Telemetry


@pytest.fixture(autouse=True)
def _clock_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every event happen at the same time, however busy the machine is."""
    now = time.monotonic()
    monkeypatch.setattr("telepresence.runtime.telemetry.time.monotonic", lambda: now)


def test_a_rate_follows_the_events_and_falls_to_zero_when_they_stop() -> None:
    rate = RateCounter()
    for index in range(301):
        rate.tick(index / 30)
    assert abs(rate.read(10.0) - 30.0) < 0.5
    assert rate.read(10.0 + WINDOW_S / 2) < 20.0
    assert rate.read(10.1 + WINDOW_S) == 0.0
    assert rate.total == 301


def test_errors_are_counted_by_text_and_bounded() -> None:
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


def test_a_rate_of_events_that_count_for_many() -> None:
    rate = RateCounter()
    for index in range(31):
        rate.tick(index / 10, count=1000)
    assert abs(rate.read(3.0) - 10_000) < 500
    assert rate.total == 31_000


def test_durations_of_a_stage_are_given_as_percentiles() -> None:
    times = DurationWindow()
    assert times.read_ms() is None
    for ms in range(1, 101):
        times.add(ms / 1000)
    assert times.read_ms() == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "max": 100.0}


def test_tracking_health_is_the_fraction_of_frames_with_a_face() -> None:
    telemetry = Telemetry()
    assert telemetry.tracking_health() is None
    for index in range(8):
        telemetry.tracked.tick()
        if index % 2:
            telemetry.found.tick()
    health = telemetry.tracking_health()
    assert health is not None
    assert 0.4 < health < 0.6


def test_the_status_as_metrics() -> None:
    telemetry = Telemetry()
    stages = {"track": {"state": "running", "silent_s": 0.1, "restarts": 2, "error": "x", "ms": None}}
    status: dict[str, Any] = {"state": "live", "psnr_db": None, "fps": 29.5, "drops": {"camera": 3}}
    status |= {"stages": stages, "training": {"state": "resting", "snapshots": {"published": 7}}, "replay": None}
    telemetry.register(StatusCollector(lambda: status))
    lines = telemetry.metrics().splitlines()
    assert "telepresence_stream_fps 29.5" in lines
    assert not any(line.startswith("telepresence_psnr_db ") for line in lines)
    assert 'telepresence_dropped{what="camera"} 3.0' in lines
    assert 'telepresence_stage_up{stage="track"} 1.0' in lines
    assert 'telepresence_stage_restarts{stage="track"} 2.0' in lines
    assert 'telepresence_snapshots{outcome="published"} 7.0' in lines
    assert 'telepresence_training{telepresence_training="resting"} 1.0' in lines
    assert 'telepresence_session{telepresence_session="live"} 1.0' in lines


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

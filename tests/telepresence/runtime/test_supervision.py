"""Supervision of stages and validation of capture times, without a call."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from telepresence.runtime.clock import CaptureClock
from telepresence.runtime.failure_policy import JUMP_S, OLD_S, POLICIES, Condition, Fallback, Policy
from telepresence.runtime.supervision import Supervisor

PATIENCE_S = 60.0
SOON = (0.01, 0.01, 0.01)


def test_a_stage_that_hangs_is_abandoned_or_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Policy(SOON, Fallback.STOP, 0.05, Fallback.STOP)
    monkeypatch.setitem(POLICIES, "render", quick)
    monkeypatch.setitem(POLICIES, "train", replace(quick, hung=Fallback.WITHOUT))
    notes: list[str] = []
    ends: list[str] = []
    stages = Supervisor(lambda stage, _: notes.append(stage), lambda _: None, ends.append)
    free = threading.Event()
    for stage in ("train", "render"):
        stages.begin(stage, lambda: bool(free.wait(PATIENCE_S)))  # type: ignore[arg-type,return-value]
    now = time.monotonic()
    stages.watch(now)
    stages.watch(now + 1.0)  # no stage has finished a round meanwhile
    assert sorted(notes) == ["render", "train"]
    assert [end.split(":")[0] for end in ends] == ["stage render hangs"]
    assert {health.condition for health in stages.health(time.monotonic()).values()} == {Condition.HUNG}
    stages.watch(now + 1.0)
    assert len(notes) == 2, "it is reported once"
    free.set()
    assert stages.stop() == frozenset()


def test_after_the_machine_slept_no_stage_counts_as_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "track", Policy(SOON, Fallback.STOP, 2.0, Fallback.STOP))
    stages = Supervisor(pytest.fail, lambda _: None, pytest.fail)
    free = threading.Event()
    stages.begin("track", lambda: bool(free.wait(PATIENCE_S)))  # type: ignore[arg-type,return-value]
    now = stages._workers["track"].heartbeat
    stages.watch(now)
    stages.watch(now + 10.0 * JUMP_S)
    stages.watch(now + 10.0 * JUMP_S + 1.0)
    stages.watch(now)  # a clock that goes back does no harm
    free.set()
    assert stages.stop() == frozenset()


def test_capture_times_grow_whatever_the_camera_sends() -> None:
    clock, second = CaptureClock(), 1_000_000_000
    told = [9.5, 9.6, 3.0, 3.1, 99.0, 9.95]
    came = [9.6, 9.7, 9.8, 9.9, 10.0, 10.1]
    stamps = [clock.stamp(int(t * second), int(now * second)) / second for t, now in zip(told, came, strict=True)]
    assert stamps == [9.5, 9.6, 9.8, 9.9, 10.0, 10.1]
    assert clock.wrong == 4
    assert clock.stamp(int(11 * second), int((11.0 + OLD_S + 0.1) * second)) == int((11.0 + OLD_S + 0.1) * second)


def test_the_documentation_has_the_same_table_as_the_code(root: Path) -> None:
    words = {Fallback.STOP: "the call ends", Fallback.WITHOUT: "the call goes on without it"}
    again = {"camera": "opened anew", "encode": "another thread takes over", "publish": "connected anew"}
    page = (root / "docs" / "supervision.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 5:
            rows[cells[0].strip("`")] = cells[1:]
    assert rows.keys() == POLICIES.keys()
    for stage, policy in POLICIES.items():
        assert rows[stage] == [
            ", ".join(f"{pause:g}" for pause in policy.pauses),
            words.get(policy.failed, "again, always"),
            f"{policy.silent_s:g}",
            words.get(policy.hung) or again[stage],
        ]

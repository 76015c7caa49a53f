"""Named threads: stop, restart, and the end after the last restart."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from telepresence import worker
from telepresence.worker import Worker


def test_it_works_until_it_is_stopped_under_its_own_name() -> None:
    names: set[str] = set()
    rounds = threading.Semaphore(0)

    def work() -> None:
        names.add(threading.current_thread().name)
        rounds.release()
        thread.stop.wait(0.001)

    thread = Worker("capture", work, failed=pytest.fail, fatal=pytest.fail)
    thread.start()
    for _ in range(3):
        assert rounds.acquire(timeout=10)
    assert thread.join(10)
    assert names == {"capture"}


def test_a_stage_that_raises_is_restarted_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BACKOFF_S", (0.001, 0.001, 0.001))
    setups: list[int] = []
    failures: list[str] = []
    ended = threading.Event()

    def work() -> None:
        raise ValueError("no good")

    thread = Worker(
        "track",
        work,
        setup=lambda: setups.append(1),
        failed=lambda name, error: failures.append(f"{name}: {error}"),
        fatal=lambda name, error: ended.set(),
    )
    thread.start()
    assert ended.wait(10)
    assert len(setups) == 4
    assert failures == ["track: no good"] * 4
    assert thread.join(10)


@pytest.mark.skipif(sys.platform != "linux", reason="nice levels of single threads exist on Linux only")
def test_only_its_own_thread_is_made_nicer() -> None:
    levels: list[int] = []
    done = threading.Event()

    def work() -> None:
        levels.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        done.set()
        thread.stop.wait(1)

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = Worker("train", work, failed=pytest.fail, fatal=pytest.fail, nice=min(before + 5, 19))
    thread.start()
    assert done.wait(10)
    assert thread.join(10)
    assert levels[0] == min(before + 5, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.main_thread().native_id or 0) == before

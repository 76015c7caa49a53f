"""Worker threads: stop, restart, and the end after the last restart."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from telepresence.runtime.failure_policy import Condition, Fallback, Policy, is_device_error
from telepresence.runtime.worker import Worker

QUICK = Policy((0.001, 0.001, 0.001), Fallback.STOP, 60.0, Fallback.STOP)


def test_a_worker_runs_under_its_name_until_it_is_stopped() -> None:
    names: set[str] = set()
    rounds = threading.Semaphore(0)

    def work() -> None:
        names.add(threading.current_thread().name)
        rounds.release()
        thread.stop.wait(0.001)

    thread = Worker("capture", work, policy=QUICK, failed=pytest.fail, fatal=pytest.fail)
    thread.start()
    for _ in range(3):
        assert rounds.acquire(timeout=600)
    assert thread.join(60)
    assert names == {"capture"}


def test_a_stage_that_raises_is_restarted_and_then_given_up(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    failures: list[str] = []
    ended = threading.Event()

    def work() -> None:
        raise ValueError("no good")

    thread = Worker(
        "track",
        work,
        policy=QUICK,
        setup=lambda: calls.append("setup"),
        mend=lambda: calls.append("mend"),
        failed=lambda name, error: failures.append(f"{name}: {error}"),
        fatal=lambda name, error: ended.set(),
    )
    thread.start()
    assert ended.wait(60)
    assert calls == ["setup", "mend", "mend", "mend"]
    assert failures == ["track: no good"] * 4
    assert caplog.text.count("stage track failed") == 4
    assert caplog.text.count("Traceback") == 1, "once for the same error"
    assert thread.join(60)
    health = thread.health(time.monotonic())
    assert (health.condition, health.restarts, health.error) == (Condition.FAILED, 3, "ValueError: no good")


def test_a_stage_that_is_never_given_up_comes_back() -> None:
    rounds = 0
    back = threading.Event()

    def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds <= 6:
            raise ValueError("not yet")
        back.set()
        thread.stop.wait(0.001)

    policy = Policy((0.001, 0.001), Fallback.AGAIN, 60.0, Fallback.WITHOUT)
    thread = Worker("train", work, policy=policy, failed=lambda *_: None, fatal=pytest.fail)
    thread.start()
    assert back.wait(60)
    while thread.health(time.monotonic()).condition is not Condition.RUNNING:
        time.sleep(0.001)
    assert thread.health(time.monotonic()).restarts == 6
    assert thread.join(60)


def test_a_lost_gpu_ends_a_stage_at_once_and_no_memory_does_not() -> None:
    lost = RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")
    ended = threading.Event()

    def work() -> None:
        raise lost

    failures: list[Exception] = []
    thread = Worker(
        "render", work, policy=QUICK, failed=lambda _, error: failures.append(error), fatal=lambda *_: ended.set()
    )
    thread.start()
    assert ended.wait(60)
    assert thread.join(60)
    assert failures == [lost]
    assert thread.health(time.monotonic()).error == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert is_device_error(RuntimeError("cudaErrorLaunchFailure: unspecified launch failure"))  # as CuPy says it
    assert not is_device_error(RuntimeError("CUDA error: out of memory"))
    assert not is_device_error(RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument"))
    assert not is_device_error(ValueError("no such triangle"))


@pytest.mark.skipif(sys.platform != "linux", reason="nice levels of single threads exist on Linux only")
def test_the_nice_level_applies_to_the_thread_alone() -> None:
    levels: list[int] = []
    done = threading.Event()

    def work() -> None:
        levels.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        done.set()
        thread.stop.wait(1)

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = Worker("train", work, policy=QUICK, failed=pytest.fail, fatal=pytest.fail, nice=min(before + 5, 19))
    thread.start()
    assert done.wait(60)
    assert thread.join(60)
    assert levels[0] == min(before + 5, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.main_thread().native_id or 0) == before

"""Thread ownership: an object that is used by the wrong thread raises, and nothing is checked without the variable."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from telepresence.runtime import ownership
from telepresence.runtime.failure_policy import Fallback, Policy
from telepresence.runtime.ownership import any_thread, called_by, enter_role, owned_by
from telepresence.runtime.worker import Worker

POLICY = Policy((0.001,), Fallback.STOP, 60.0, Fallback.STOP)


@owned_by("track")
class Counter:
    """An object of the tracking thread."""

    def __init__(self) -> None:
        self.count = 0
        self.requested = False

    def add(self) -> None:
        self.count += 1

    @property
    def twice(self) -> int:
        return 2 * self.count

    @any_thread
    def request(self) -> None:
        self.requested = True

    @property
    @any_thread
    def read(self) -> int:
        return self.count

    @called_by("render")
    def draw(self) -> int:
        return self.count


@pytest.fixture(autouse=True)
def _expected_violations() -> Iterator[None]:
    """Violations are the subject of these tests: do not let them fail."""
    yield
    ownership.violations.clear()


def as_role(name: str | None, work: Callable[[], Any]) -> BaseException | None:
    """Call ``work`` on a new thread with this role; the error that it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        if name is not None:
            enter_role(name)
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"thread of {name}")
    thread.start()
    thread.join()
    return errors[0] if errors else None


def test_the_thread_of_the_role_uses_the_object_and_another_raises() -> None:
    counter = Counter()
    assert as_role("track", counter.add) is None
    error = as_role("render", counter.add)
    assert type(error) is AssertionError
    assert str(error) == "Counter.add belongs to thread 'track' and was used by thread 'render'"
    assert ownership.violations == [str(error)]
    assert counter.count == 1


def test_properties_and_assignments_are_checked_too() -> None:
    counter = Counter()
    assert isinstance(as_role("render", lambda: counter.twice), AssertionError)
    assert isinstance(as_role("render", lambda: setattr(counter, "count", 5)), AssertionError)
    assert counter.count == 0
    assert as_role("track", lambda: setattr(counter, "count", 5)) is None
    assert counter.read == 5


def test_methods_marked_for_any_thread_or_for_another_role_are_not_the_owners_alone() -> None:
    counter = Counter()
    assert as_role("network", counter.request) is None
    assert counter.requested
    assert as_role("network", lambda: counter.read) is None
    assert as_role("render", counter.draw) is None
    assert isinstance(as_role("track", counter.draw), AssertionError)


def test_any_thread_may_construct_the_object() -> None:
    assert as_role("supervise", Counter) is None


def test_a_thread_without_a_role_uses_the_object_before_and_after_its_owner_but_not_meanwhile() -> None:
    counter = Counter()
    counter.add()  # the start of the daemon, on the main thread
    assert as_role(None, counter.add) is not None, "there can be one user only"
    working, done = threading.Event(), threading.Event()

    def work() -> None:
        counter.add()
        working.set()
        done.wait(60.0)

    worker = Worker("track", work, policy=POLICY)
    worker.start()
    assert working.wait(60.0)
    with pytest.raises(AssertionError, match=r"MainThread \(no role\)"):
        counter.add()
    done.set()
    assert worker.join(60.0)
    count = counter.count
    counter.add()  # the end of the daemon
    assert counter.count == count + 1


def test_a_thread_that_hangs_owns_nothing_once_it_is_abandoned() -> None:
    counter = Counter()
    working, free = threading.Event(), threading.Event()

    def hang() -> None:
        counter.add()
        working.set()
        free.wait(60.0)

    worker = Worker("track", hang, policy=POLICY)
    worker.start()
    assert working.wait(60.0)
    worker.abandon("it hangs")
    counter.add()
    free.set()
    assert worker.join(60.0)


def test_a_worker_has_the_role_of_its_name_or_another_one_and_keeps_it_after_a_failure() -> None:
    roles: list[str | None] = []
    done = threading.Event()

    def work() -> None:
        role = ownership._local.role
        roles.append(role.name if role is not None else None)
        if len(roles) == 1:
            raise ValueError("try again")
        done.set()
        worker.stop.wait(60.0)

    worker = Worker("zmq", work, policy=POLICY, role="receive")
    worker.start()
    assert done.wait(60.0)
    assert worker.join(60.0)
    assert roles[:2] == ["receive", "receive"]


def test_without_the_variable_classes_and_methods_stay_as_they_are() -> None:
    program = """
from telepresence.runtime.ownership import any_thread, called_by, owned_by
def method(self): ...
class Plain:
    def __init__(self): ...
    go = method
before = dict(vars(Plain))
assert owned_by("track")(Plain) is Plain and dict(vars(Plain)) == before
assert any_thread(method) is method and called_by("render")(method) is method and not vars(method)
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={"PATH": "/usr/bin:/bin"})

"""Settings of a whole call that learns and renders fast, for tests that start a daemon."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.support.small_avatar import SMALL_AVATAR

if TYPE_CHECKING:
    from telepresence.call.daemon import Daemon

FULL_SIZE_CALL = ("run.zmq=tcp://127.0.0.1:*", "avatar.learn.size=32", "stream.adapt=false", *SMALL_AVATAR)
"""A call with a stream of the default size, also on a busy machine."""
SMALL_CALL = (*FULL_SIZE_CALL, "run.size=128", "stream.size=128")
"""A call with small frames."""
IN_PROCESS_CALL = (*SMALL_CALL, "stream.port=0", "run.render_fps=10")
"""A call with small frames in the process of the test."""

PATIENCE_S = 120.0
"""Seconds to wait for an event of a call: far more than it takes, as the machine may be busy."""


def as_options(settings: tuple[str, ...]) -> tuple[str, ...]:
    """``settings`` as options of the command line."""
    return tuple(f"--set={setting}" for setting in settings)


def wait_for_status(
    daemon: Daemon, condition: Callable[[dict[str, Any]], bool], patience_s: float = PATIENCE_S
) -> dict[str, Any]:
    """The first status of a running daemon that fulfils ``condition``; fails if the call ends or it takes too long."""
    end = time.monotonic() + patience_s
    while not condition(status := daemon.status()):
        assert daemon.failure is None
        assert time.monotonic() < end, status
        time.sleep(0.02)
    return status


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` is true; fails if it takes too long."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)

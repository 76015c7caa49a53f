"""A call goes on after its preview window was killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def window_of(pid: int) -> int | None:
    """Process id of the preview window of the daemon ``pid``."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return None


@pytest.mark.skipif("sys.platform != 'linux'")
def test_a_call_outlives_its_preview(start_daemon: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    env = os.environ | {"SDL_VIDEODRIVER": "dummy", "OMP_NUM_THREADS": "1"}
    small = ("--size=128", "--device=cpu", "--set=avatar.learn.size=64", f"--zmq=ipc://{tmp_path}/zmq")
    daemon = start_daemon("--source=synthetic", "--preview", f"--avatar={tmp_path / 'avatar'}", *small, env=env)
    daemon.wait_until(lambda status: status["state"] in ("learning", "live"))
    window = window_of(daemon.process.pid)
    assert window is not None
    os.kill(window, signal.SIGKILL)
    end = time.monotonic() + 120
    while "the preview window is closed; the call continues" not in daemon.output():
        assert time.monotonic() < end, daemon.output()
        time.sleep(0.1)
    steps = daemon.status()["steps"]
    after = daemon.wait_until(lambda status: status["steps"] > steps and status["fps"] > 0)
    assert after["state"] in ("learning", "live")
    assert after["errors"] == []
    assert daemon.stop() == 0, daemon.output()
    assert "Traceback" not in daemon.output()

"""The daemon in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""Root of the checkout."""
PATIENCE_S = 240.0
"""Seconds to wait for a status, unless a test says otherwise: far more than a busy machine needs."""
START_S = 180.0
"""Seconds to wait until the daemon serves."""
STOP_S = 240.0
"""Seconds to wait for the end of the daemon."""


@dataclass
class RunningDaemon:
    """``telepresence run`` in a process of its own, serving at ``address``; its output is in the file ``log``."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""

    def output(self) -> str:
        """Everything that the process has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def status(self) -> dict[str, Any]:
        """JSON object of `GET /status`."""
        with urllib.request.urlopen(f"{self.address}/status", timeout=120) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def wait_until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE_S) -> dict[str, Any]:
        """The first status that fulfils ``condition``; fails after ``seconds``, with the output of the process."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = self.status()
            if condition(status):
                return status
            time.sleep(0.2)
        pytest.fail(f"not within {seconds} s: {self.status()}\n{self.output()}")

    def stop(self) -> int:
        """End the process as Ctrl-C does; returns its exit status.  Fails if a class was used by a wrong thread."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=STOP_S)
        assert "belongs to thread" not in self.output(), self.output()
        return code


def start_daemon(
    log: Path, arguments: tuple[str, ...], program: tuple[str, ...] | None, **options: Any
) -> RunningDaemon:
    """Start the daemon on free ports; the result has no address before `wait_for_address`.

    ``program`` replaces ``[python, -m, telepresence]``; ``options`` go to `subprocess.Popen`.
    """
    free_ports = ("--port", "0", "--set", "run.zmq=tcp://127.0.0.1:*")  # another daemon may have the default ones
    command = [*(program or (sys.executable, "-m", "telepresence")), "run", *free_ports, *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **{"cwd": ROOT, **options}
        )
    return RunningDaemon(process, log)


def wait_for_address(daemon: RunningDaemon) -> None:
    """Wait until ``/healthz`` of ``daemon`` answers, and set its address; fails with the output of the process."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and daemon.process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", daemon.output())
        if found:
            daemon.address = found.group()
            try:
                urllib.request.urlopen(f"{daemon.address}/healthz", timeout=120).close()
            except OSError:
                pass
            else:
                return
        time.sleep(0.1)
    pytest.fail(f"the daemon does not serve:\n{daemon.output()}")

"""The daemon in a process of its own, observed from outside: its address, status, log, memory and processor time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from telepresence.measure.machine import thread_cpu_s

ROOT: Final = Path(__file__).resolve().parents[2]
"""Root of the checkout, where the daemon runs."""

STAMPING: Final = Path(__file__).with_name("frame_stamping.py")
"""Program that runs the daemon with stamped frames."""

START_S: Final = 120.0
"""Seconds within which the daemon must answer its first request."""

STOP_S: Final = 30.0
"""Seconds that the daemon has to save and exit before it is killed."""

LIVE_WITHIN_S: Final = 300.0
"""Seconds within which a new avatar must become `live`."""

LEARN_S: Final = 20.0
"""Seconds of learning after `live`, in which the avatar still changes fast."""

STAGES: Final = ("capture", "track", "render", "train", "supervise", "zmq")
"""Names of the daemon's threads whose work does not depend on the number of viewers."""


@dataclass
class DaemonProcess:
    """A running ``telepresence run``.

    Attributes:
        process: its process.
        log: file with its output.
        journal: file with the lines that `frame_stamping` writes.
        started: monotonic time of the start, in seconds.
        address: URL of the page, once it is served.
    """

    process: subprocess.Popen[bytes]
    log: Path
    journal: Path
    started: float
    address: str = ""

    def output(self) -> str:
        """Everything that the daemon has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def age(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def wait_for_address(self, seconds: float = START_S) -> str | None:
        """Wait until ``/healthz`` answers; the URL of the page, or None if the daemon exits or is too late."""
        while self.age() < seconds and self.process.poll() is None:
            found = re.search(r"https?://127\.0\.0\.1:\d+", self.output())
            if found:
                try:
                    urllib.request.urlopen(f"{found.group()}/healthz", timeout=5).close()
                except OSError:
                    pass
                else:
                    self.address = found.group()
                    return self.address
            time.sleep(0.02)
        return None

    def status(self) -> dict[str, Any]:
        """Answer of ``GET /status``."""
        with urllib.request.urlopen(f"{self.address}/status", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def wait_until(self, condition: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """First status that fulfils ``condition``.  RuntimeError, with the log, if there is none in ``seconds``."""
        end = time.monotonic() + seconds
        while not condition(status := self.status()):
            if time.monotonic() > end:
                raise RuntimeError(f"not within {seconds:g} s: {status}\n{self.output()}")
            time.sleep(0.2)
        return status

    def lines(self) -> list[dict[str, Any]]:
        """Complete lines of the journal."""
        return [json.loads(line) for line in self.journal.read_text().splitlines(keepends=True) if line.endswith("\n")]

    # ---- resources that it uses

    def memory_mb(self) -> float:
        """Resident memory in MiB; 0 if the process has ended."""
        try:
            return float(psutil.Process(self.process.pid).memory_info().rss) / (1 << 20)
        except psutil.NoSuchProcess:
            return 0.0

    def descriptors(self) -> int:
        """Number of open file descriptors."""
        return int(psutil.Process(self.process.pid).num_fds())

    def threads(self) -> int:
        """Number of threads."""
        return int(psutil.Process(self.process.pid).num_threads())

    def udp_sockets(self) -> int:
        """Number of open UDP sockets; each WebRTC peer has a few."""
        return len(psutil.Process(self.process.pid).net_connections(kind="udp"))

    def streaming_cpu_s(self) -> float:
        """Seconds of processor time of the threads that encode and send: all Python threads except `STAGES`."""
        listed = [line["threads"] for line in self.lines() if "threads" in line]
        names = {int(thread): name for threads in listed for thread, name in threads.items()}
        used = thread_cpu_s(self.process.pid)
        return sum(used.get(thread, 0.0) for thread, name in names.items() if name not in STAGES)

    # ---- end

    def stop(self) -> None:
        """Send Ctrl-C, which saves the avatar; kill the process if it is still running after `STOP_S`."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def daemon_process(
    scratch: Path, command: Sequence[str], environment: dict[str, str] | None = None
) -> Iterator[DaemonProcess]:
    """Run ``command``, which starts the daemon, until the block ends; its output goes to ``scratch/daemon.log``."""
    log, journal = scratch / "daemon.log", scratch / "journal.jsonl"
    journal.unlink(missing_ok=True)
    environment = {**os.environ, **(environment or {})}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=ROOT, env=environment
        )
    running = DaemonProcess(process, log, journal, time.monotonic())
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def stamped_daemon(
    scratch: Path, *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[DaemonProcess]:
    """Run ``telepresence run`` with ``arguments`` on a free port, with stamped frames (`frame_stamping`).

    The block starts when the daemon serves.  RuntimeError, with its log, if it does not.
    """
    command = [sys.executable, str(STAMPING), str(scratch / "journal.jsonl"), "run", "--port", "0", *arguments]
    command += ["--set", "run.zmq=tcp://127.0.0.1:*"]
    with daemon_process(scratch, command, environment) as running:
        if running.wait_for_address() is None:
            raise RuntimeError(f"the daemon does not serve:\n{running.output()}")
        yield running


def learned_avatar(scratch: Path, source: str, *arguments: str) -> Path:
    """Path of a copy of an avatar that was learned from ``source`` in a call until it was `live`.

    The avatar itself is learned at the first use and kept in ``scratch``.
    """
    kept = scratch / f"{re.sub(r'[^a-z0-9]+', '-', source.lower()).strip('-')}.avatar"
    if not (kept / "avatar.safetensors").exists():
        with stamped_daemon(scratch, "--source", source, "--avatar", str(kept), *arguments) as running:
            running.wait_until(lambda status: status["state"] == "live", LIVE_WITHIN_S)
            time.sleep(LEARN_S)
    copy = scratch / "call.avatar"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(kept, copy)
    return copy

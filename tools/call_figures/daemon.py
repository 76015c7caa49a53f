"""A daemon in a process of its own, seen from outside."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from call_figures.machine import cpu_s

ROOT: Final = Path(__file__).resolve().parents[2]
STAMPING: Final = Path(__file__).with_name("stamping.py")
START_S: Final = 120.0
STOP_S: Final = 30.0
STAGES: Final = ("capture", "track", "render", "train", "supervise", "zmq")
"""Threads whose work does not depend on who watches."""


@dataclass
class Daemon:
    """A running ``telepresence run``: all that it prints goes to ``log``, what it shows to ``journal``."""

    process: subprocess.Popen[bytes]
    log: Path
    journal: Path
    started: float
    address: str = ""

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.address}/status", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def wait_until(self, condition: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """The first status that fulfils ``condition``; RuntimeError if there is none within ``seconds``."""
        end = time.monotonic() + seconds
        while not condition(status := self.status()):
            if time.monotonic() > end:
                raise RuntimeError(f"not within {seconds:g} s: {status}\n{self.output()}")
            time.sleep(0.2)
        return status

    def lines(self) -> list[dict[str, Any]]:
        """What the journal holds by now."""
        return [json.loads(line) for line in self.journal.read_text().splitlines(keepends=True) if line.endswith("\n")]

    # ---- what it takes of the machine

    @property
    def _proc(self) -> Path:
        return Path(f"/proc/{self.process.pid}")

    def memory_mb(self) -> float:
        """Resident memory."""
        found = re.search(r"VmRSS:\s+(\d+) kB", (self._proc / "status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def descriptors(self) -> int:
        return sum(1 for _ in (self._proc / "fd").iterdir())

    def threads(self) -> int:
        return sum(1 for _ in (self._proc / "task").iterdir())

    def udp_sockets(self) -> int:
        """How many ports of UDP it holds: peers have some each."""
        held = set()
        for descriptor in (self._proc / "fd").iterdir():
            try:
                held.add(str(descriptor.readlink()))
            except OSError:
                continue  # closed meanwhile
        rows = [line.split() for name in ("udp", "udp6") for line in (self._proc / "net" / name).open()]
        return sum(f"socket:[{row[9]}]" in held for row in rows)

    def streaming_cpu_s(self) -> float:
        """CPU seconds of the threads that encode and send (those that Python knows, but for the stages)."""
        named = [line["threads"] for line in self.lines() if "threads" in line]
        threads = {thread: name for names in named for thread, name in names.items()}
        return sum(cpu_s(self._proc / "task" / id_) for id_, name in threads.items() if name not in STAGES)

    def cpu_s(self) -> float:
        """CPU seconds of the whole process."""
        return cpu_s(self._proc)

    # ---- end

    def stop(self) -> None:
        """Ctrl-C, which saves the avatar; and by force if that takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def daemon(scratch: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Daemon]:
    """``telepresence run`` with ``arguments`` on a free port, serving; its pictures are stamped (`stamping`).

    RuntimeError, with what it printed, if it does not serve.
    """
    log, journal = scratch / "daemon.log", scratch / "journal.jsonl"
    journal.unlink(missing_ok=True)
    command = [sys.executable, str(STAMPING), str(journal), "run", "--port", "0", *arguments]
    command += ["--set", "run.zmq=tcp://127.0.0.1:*"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
    running = Daemon(process, log, journal, time.monotonic())
    try:
        _await(running)
        yield running
    finally:
        running.stop()


def learned(scratch: Path, source: str, *arguments: str) -> Path:
    """A copy, for this run, of the avatar that a call with ``source`` learned until it was `live`."""
    kept = scratch / f"{re.sub(r'[^a-z0-9]+', '-', source.lower()).strip('-')}.avatar"
    if not (kept / "avatar.safetensors").exists():
        with daemon(scratch, "--source", source, "--avatar", str(kept), *arguments) as running:
            running.wait_until(lambda status: status["state"] == "live", 300.0)
            time.sleep(20.0)  # past the first seconds, in which the avatar changes most
    copy = scratch / "call.avatar"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(kept, copy)
    return copy


def _await(running: Daemon) -> None:
    while running.age() < START_S and running.process.poll() is None:
        found = re.search(r"https?://127\.0\.0\.1:\d+", running.output())
        if found:
            running.address = found.group()
            try:
                urllib.request.urlopen(f"{running.address}/healthz", timeout=5).close()
            except OSError:
                pass
            else:
                return
        time.sleep(0.02)
    raise RuntimeError(f"the daemon does not serve:\n{running.output()}")

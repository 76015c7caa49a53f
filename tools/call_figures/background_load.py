"""Processor time that other programs use while something is measured, and that of a process with its descendants."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

import psutil

SAMPLE_S: Final = 0.25
"""Seconds between two samples of the processes that descend from this one."""


def process_tree(root: int) -> list[psutil.Process]:
    """The process ``root`` and all its descendants; empty if it has ended."""
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(process: psutil.Process) -> float:
    """Seconds of processor time (user and system) that a process has used; 0 if it has ended."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


class BackgroundLoad:
    """Processor cores used by programs that do not descend from this process, since the object was made."""

    def __init__(self) -> None:
        self._used: dict[tuple[int, float], float] = {}  # own processes (id, start time): seconds at the last sample
        self._sample()
        self._began, self._busy, self._own = time.monotonic(), _busy_s(), self.own_s()
        threading.Thread(target=self._run, name="background-load", daemon=True).start()

    def others(self) -> float:
        """Average number of cores that other programs kept busy."""
        self._sample()
        seconds = time.monotonic() - self._began
        return round(max(0.0, _busy_s() - self._busy - (self.own_s() - self._own)) / seconds, 2)

    def own_s(self) -> float:
        """Seconds of processor time of this process and its descendants, including those that have ended."""
        return sum(list(self._used.values()))

    def _run(self) -> None:
        # Sampled often: a browser's processes are not waited for by their parents, and their times are lost with them.
        while True:
            time.sleep(SAMPLE_S)
            self._sample()

    def _sample(self) -> None:
        for process in process_tree(os.getpid()):
            used = cpu_s(process)
            if used > 0.0:
                self._used[process.pid, process.create_time()] = used


def _busy_s() -> float:
    """Seconds of processor time that all programs of the machine have used."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")))

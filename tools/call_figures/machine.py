"""The machine that is measured on, what was measured, and who else used it meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
LOOK_S = 0.25


def machine() -> dict[str, Any]:
    """Processor, cores, GPU and versions."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next(
            (line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line), model
        )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """The commit measured, marked if the tree differs from it."""
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def tree(root: int) -> set[int]:
    """The process ``root`` and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _fields(folder)
        if fields:
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = set(), [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += children.get(pid, [])
    return found


def cpu_s(folder: Path) -> float:
    """Seconds of CPU that the process or thread of ``folder`` in /proc has used; 0 for one that is gone."""
    fields = _fields(folder)
    return (int(fields[11]) + int(fields[12])) * TICK_S if fields else 0.0


class Quiet:
    """How much of the machine others used from the making of this on."""

    def __init__(self) -> None:
        self._spent: dict[tuple[str, str], float] = {}  # by process of ours (number, when it began): s, when last seen
        self._look()
        self._began, self._busy, self._own = time.monotonic(), _busy_s(), self.own_s()
        threading.Thread(target=self._watch, name="quiet", daemon=True).start()

    def others(self) -> float:
        """Cores that programs which do not descend from this one kept busy."""
        self._look()
        seconds = time.monotonic() - self._began
        return round(max(0.0, _busy_s() - self._busy - (self.own_s() - self._own)) / seconds, 2)

    def own_s(self) -> float:
        """Seconds of CPU of this process and its descendants, those that have ended too."""
        return sum(list(self._spent.values()))

    def _watch(self) -> None:
        # Often: a browser's processes are not waited for by those who began them, and take what they used with them.
        while True:
            time.sleep(LOOK_S)
            self._look()

    def _look(self) -> None:
        for pid in tree(os.getpid()):
            fields = _fields(Path(f"/proc/{pid}"))
            if fields:
                self._spent[str(pid), fields[19]] = (int(fields[11]) + int(fields[12])) * TICK_S


def _busy_s() -> float:
    """Seconds of CPU that the whole machine has used."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) * TICK_S


def _fields(folder: Path) -> list[str]:
    """The fields of ``stat`` from the state on."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return []

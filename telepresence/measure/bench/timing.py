"""Time and memory: a host clock around finished work, medians, and what the operating system and the driver say."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Spread = dict[str, float]
"""``median``, ``p95`` and ``p99`` of many measurements."""


def spread(values: Sequence[float]) -> Spread:
    """Median and the two percentiles that a viewer feels, of at least one value."""
    median, p95, p99 = np.percentile(np.asarray(values, dtype=np.float64), (50.0, 95.0, 99.0))
    return {"median": float(median), "p95": float(p95), "p99": float(p99)}


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def finish(device: torch.device) -> None:
    """Wait until everything that was asked of ``device`` is done."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def timed_ms(work: Callable[[T], object], inputs: Iterable[T], device: torch.device, warm: int = 3) -> list[float]:
    """Milliseconds of ``work(input)``, each until the device has finished; the first ``warm`` are left out."""
    times = []
    for number, value in enumerate(inputs):
        finish(device)
        began = time.perf_counter()
        work(value)
        finish(device)
        if number >= warm:
            times.append(1000.0 * (time.perf_counter() - began))
    return times


def batch_ms(work: Callable[[T], object], inputs: Sequence[T], device: torch.device, seconds: float = 1.0) -> float:
    """Median milliseconds of ``work(input)``, for work that may be shorter than the way to the device and back.

    The inputs take turns, so that no cache holds the last ones.  On a GPU the device's own events stand around as many
    calls as there are inputs; on a CPU each call is timed.
    """
    import torch

    for value in inputs:
        work(value)
    finish(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and len(times) < 1000):
        if device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            for value in inputs:
                work(value)
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) / len(inputs))
        else:
            for value in inputs:
                began = time.perf_counter()
                work(value)
                times.append(1000.0 * (time.perf_counter() - began))
    return median(times)


def cycled(values: Sequence[T], count: int) -> Iterator[T]:
    """``count`` values, there and back again: a take that goes on without a jump."""
    path = [*range(len(values)), *range(len(values) - 2, 0, -1)]
    return (values[path[i % len(path)]] for i in range(count))


def resident_gb() -> float | None:
    """Memory of this process that is in RAM, in 10^9 bytes; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - not a file on a disk
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (OSError, ValueError, AttributeError):
        return None


def device_memory_gb(device: torch.device) -> tuple[float, str]:
    """Memory of the GPU in 10^9 bytes, and whose: this process's as the driver lists it, else all that is in use."""
    import torch

    torch.cuda.synchronize(device)
    try:
        query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False).stdout  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        listed = ""
    for line in listed.splitlines():
        pid, _, mebibytes = (part.strip() for part in line.partition(","))
        if pid == str(os.getpid()) and mebibytes.isdigit():
            return int(mebibytes) * (1 << 20) / 1e9, "this process, by nvidia-smi"
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 1e9, "the whole device, by the driver: it does not list processes"


def used_memory_gb(device: torch.device) -> tuple[float | None, str]:
    """`device_memory_gb` on a GPU, `resident_gb` on a CPU, and what was counted."""
    if device.type == "cuda":
        return device_memory_gb(device)
    return resident_gb(), "resident memory of this process"


def device_name(device: torch.device) -> str:
    """The card's or the processor's own name."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
                for line in file:
                    if line.startswith("model name"):
                        return line.partition(":")[2].strip()
        except OSError:
            pass
    import platform

    return platform.processor() or platform.machine()


def source_commit() -> str | None:
    """The commit that is measured: git's, ``-dirty`` if files differ from it, else what the environment says."""
    here = Path(__file__).resolve().parents[3]
    if (here / ".git").exists():
        try:
            command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
            if done.returncode == 0 and done.stdout.strip():
                return done.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            pass
    return os.environ.get("TELEPRESENCE_COMMIT")


def rounded(value: object, digits: int = 4) -> object:
    """Numbers anywhere in nested dicts and lists to ``digits`` significant ones, for a file; not finite is null."""
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value

"""Time and memory: a host clock around finished work, medians, and what the operating system and the driver say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Spread = dict[str, float]
"""``median``, ``p95`` and ``p99`` of many measurements."""


def percentiles(values: Sequence[float]) -> Spread:
    """Median and the two percentiles that a viewer feels, of at least one value."""
    median, p95, p99 = np.percentile(np.asarray(values, dtype=np.float64), (50.0, 95.0, 99.0))
    return {"median": float(median), "p95": float(p95), "p99": float(p99)}


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def synchronise(device: torch.device) -> None:
    """Wait until everything that was asked of ``device`` is done."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def timed_ms(work: Callable[[T], object], inputs: Iterable[T], device: torch.device, warm: int = 3) -> list[float]:
    """Milliseconds of ``work(input)``, each until the device has finished; the first ``warm`` are left out."""
    times = []
    for number, value in enumerate(inputs):
        synchronise(device)
        began = time.perf_counter()
        work(value)
        synchronise(device)
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
    synchronise(device)
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


def rounded(value: object, digits: int = 4) -> object:
    """Numbers anywhere in nested dicts and lists to ``digits`` significant ones, for a file; not finite is null."""
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value

"""Timing of work on CPU and GPU, and statistics of measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Percentiles = dict[str, float]
"""``median``, ``p95`` and ``p99`` of a series of measurements."""


def percentiles(values: Sequence[float]) -> Percentiles:
    """Median, 95th and 99th percentile of at least one value."""
    median, p95, p99 = np.percentile(np.asarray(values, dtype=np.float64), (50.0, 95.0, 99.0))
    return {"median": float(median), "p95": float(p95), "p99": float(p99)}


def median(values: Sequence[float]) -> float:
    """Median of at least one value."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def synchronise(device: torch.device) -> None:
    """Wait until all work queued on ``device`` has finished; a CPU queues none."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def timed_ms(work: Callable[[T], object], inputs: Iterable[T], device: torch.device, warm: int = 3) -> list[float]:
    """Milliseconds of each ``work(input)`` until the device has finished, without the first ``warm`` ones."""
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
    """Median milliseconds of ``work(input)``, also of work shorter than a round trip to the device.

    The inputs are used in turn, so that caches do not hold the last one.  On a GPU, CUDA events time one call for each
    input together; on a CPU each call is timed.  Takes about ``seconds``.
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
    """Yield ``count`` values, forwards and backwards in turn, so that successive ones are always neighbours."""
    path = [*range(len(values)), *range(len(values) - 2, 0, -1)]
    return (values[path[i % len(path)]] for i in range(count))


def rounded(value: object, digits: int = 4) -> object:
    """Round floats in nested dicts and lists to ``digits`` significant digits; NaN and infinities become None."""
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value

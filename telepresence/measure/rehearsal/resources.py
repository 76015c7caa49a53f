"""Memory and threads of this process while a call goes on, and whether they grow."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from telepresence.measure.bench.timing import resident_gb

if TYPE_CHECKING:
    import torch

EVERY_S: Final = 1.0
SLOPE_S: Final = 30.0
"""A slope over less time says nothing."""
SAMPLES: Final = 3600
"""More are thinned out, so that looking at memory does not take any."""
CURVE: Final = 240
"""Points of the curve of memory at most."""
STAGES: Final = ("capture", "track", "render", "train", "supervise", "encode")
"""Threads that a call has from its beginning to its end."""


Trend = dict[str, float | None]


@dataclass(frozen=True)
class Sample:
    """MB (10^6 bytes) in RAM and on the device, and threads of the process, at a monotonic second."""

    at: float
    host_mb: float | None
    device_mb: float | None
    threads: int


class ResourceMeter:
    """Looks at memory and threads from `start` to `stop`, in a thread that sleeps otherwise.

    ``kept`` tells how many bytes, of the host and of the device, are held only in order to measure; they do not count.
    """

    def __init__(self, device: torch.device, kept: Callable[[], tuple[int, int]] = lambda: (0, 0)) -> None:
        self.samples: list[Sample] = []
        self.lost: list[str] = []
        self.cpu_s: dict[str, float | None] = {}
        self._device, self._kept = device, kept
        self._every = EVERY_S
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resources", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look once more; every stage should still be there."""
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()
        alive = {thread.name: thread.native_id for thread in threading.enumerate()}
        self.lost = [name for name in STAGES if name not in alive]
        self.cpu_s = {name: _cpu_seconds(alive[name]) for name in STAGES if name in alive}

    def _run(self) -> None:
        while not self._done.wait(self._every):
            host, on_device = self._kept()
            resident = resident_gb()
            host_mb = 1000.0 * resident - host / 1e6 if resident is not None else None
            self.samples.append(Sample(time.monotonic(), host_mb, self._device_mb(on_device), _threads()))
            if len(self.samples) >= SAMPLES:
                del self.samples[::2]
                self._every *= 2.0

    def _device_mb(self, kept: int) -> float | None:
        if self._device.type != "cuda":
            return None
        import torch

        free, total = torch.cuda.mem_get_info(self._device)
        return (total - free - kept) / 1e6

    def figures(self) -> dict[str, Any]:
        """How much at the end, at most, and how it grew.

        ``lost_threads`` names the stages that are gone, ``cpu_s`` the seconds of a core that each has taken.
        """
        return {
            "host_mb": self._trend(lambda sample: sample.host_mb),
            "device_mb": self._trend(lambda sample: sample.device_mb),
            "threads": self._trend(lambda sample: float(sample.threads)),
            "lost_threads": self.lost,
            "cpu_s": self.cpu_s,
            "curve": [
                {
                    "seconds": s.at - self.samples[0].at,
                    "host_mb": s.host_mb,
                    "device_mb": s.device_mb,
                    "threads": s.threads,
                }
                for s in self.samples[:: 1 + len(self.samples) // CURVE]
            ],
        }

    def _trend(self, value: Callable[[Sample], float | None]) -> Trend | None:
        known = [(sample.at, number) for sample in self.samples if (number := value(sample)) is not None]
        return trend(known) if known else None


def trend(samples: Sequence[tuple[float, float]]) -> Trend:
    """Of (seconds, value): the last, the largest, and the slope an hour over the second half (least squares).

    The slope is None where that half is shorter than `SLOPE_S`.
    """
    times, values = np.asarray(samples, dtype=np.float64).T
    half = len(values) // 2
    late, slope = times[half:] - times[half], None
    if late[-1] >= SLOPE_S:
        slope = 3600.0 * float(np.polyfit(late, values[half:], 1)[0])
    return {"end": float(values[-1]), "max": float(values.max()), "slope_per_hour": slope}


def _cpu_seconds(thread: int | None) -> float | None:
    """What a thread of this process has run for, without those that it started; None where the system does not say."""
    try:
        with open(f"/proc/self/task/{thread}/stat", encoding="ascii") as file:  # noqa: PTH123 - not a file on a disk
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


def _threads() -> int:
    """All threads of the process, those of libraries too, where the system tells them."""
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names alone
    except OSError:
        return threading.active_count()

"""Memory, threads and processor time of this process, sampled during a rehearsed call, and whether they grow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from telepresence.measure.machine import gpu_bytes_in_use, resident_bytes, thread_count, thread_cpu_s

if TYPE_CHECKING:
    import torch

SAMPLE_INTERVAL_S: Final = 1.0
"""Seconds between two samples of memory and threads; doubled whenever `MAX_SAMPLES` is reached."""
MIN_SLOPE_S: Final = 30.0
"""Shortest time in seconds over which a growth per hour is computed."""
MAX_SAMPLES: Final = 3600
"""Number of samples above which every second one is deleted, so that the measurement itself takes no memory."""
MAX_CURVE_POINTS: Final = 240
"""Maximum number of points of the curve of memory in the figures."""
STAGES: Final = ("capture", "track", "render", "train", "supervise", "encode")
"""Names of the threads that run from the beginning of a call to its end."""


Trend = dict[str, float | None]
"""``end``, ``max`` and ``slope_per_hour`` of a quantity that was sampled during a call."""


@dataclass(frozen=True)
class ResourceSample:
    """Memory and threads of this process at one moment.

    Attributes:
        at: monotonic seconds.
        host_mb: resident memory, 10^6 bytes.
        device_mb: memory in use on the GPU, 10^6 bytes; None on a CPU.
        threads: number of threads.
    """

    at: float
    host_mb: float
    device_mb: float | None
    threads: int


class ResourceMeter:
    """Samples memory and threads of this process in a background thread, from `start` to `stop`.

    ``held_bytes`` returns the bytes (of the host, of the device) that are held for the measurement alone; they are
    subtracted from every sample.

    Attributes:
        samples: all samples so far, oldest first.
        lost: names of `STAGES` whose thread had ended when `stop` was called.
        cpu_s: seconds of processor time of the threads of `STAGES`; None where the system does not report them.
    """

    def __init__(self, device: torch.device, held_bytes: Callable[[], tuple[int, int]] = lambda: (0, 0)) -> None:
        self.samples: list[ResourceSample] = []
        self.lost: list[str] = []
        self.cpu_s: dict[str, float | None] = {}
        self._device, self._held_bytes = device, held_bytes
        self._interval_s = SAMPLE_INTERVAL_S
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resources", daemon=True)

    def start(self) -> None:
        """Start the sampling thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling and read the processor time of each stage; call it while the stages are still running."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        running = {thread.name: thread.native_id for thread in threading.enumerate()}
        spent = thread_cpu_s()
        self.lost = [name for name in STAGES if name not in running]
        self.cpu_s = {name: spent.get(running[name] or 0) for name in STAGES if name in running}

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            on_host, on_device = self._held_bytes()
            host_mb = (resident_bytes() - on_host) / 1e6
            self.samples.append(ResourceSample(time.monotonic(), host_mb, self._device_mb(on_device), thread_count()))
            if len(self.samples) >= MAX_SAMPLES:
                del self.samples[::2]
                self._interval_s *= 2.0

    def _device_mb(self, held: int) -> float | None:
        return (gpu_bytes_in_use(self._device) - held) / 1e6 if self._device.type == "cuda" else None

    def figures(self) -> dict[str, Any]:
        """Trends of memory and threads, lost stages, processor time of each stage, and the curve of memory.

        Keys: ``host_mb``, ``device_mb`` and ``threads`` (`trend`), ``lost_threads``, ``cpu_s``, and ``curve``: at most
        `MAX_CURVE_POINTS` samples, in seconds since the first.
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
                for s in self.samples[:: 1 + len(self.samples) // MAX_CURVE_POINTS]
            ],
        }

    def _trend(self, value: Callable[[ResourceSample], float | None]) -> Trend | None:
        known = [(sample.at, number) for sample in self.samples if (number := value(sample)) is not None]
        return trend(known) if known else None


def trend(samples: Sequence[tuple[float, float]]) -> Trend:
    """Last value, largest value, and growth per hour of (seconds, value) samples.

    The growth is the least-squares slope over the second half of the samples; None if they span less than
    `MIN_SLOPE_S`.
    """
    times, values = np.asarray(samples, dtype=np.float64).T
    half = len(values) // 2
    late, slope = times[half:] - times[half], None
    if late[-1] >= MIN_SLOPE_S:
        slope = 3600.0 * float(np.polyfit(late, values[half:], 1)[0])
    return {"end": float(values[-1]), "max": float(values.max()), "slope_per_hour": slope}

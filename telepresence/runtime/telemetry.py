"""Telemetry of the daemon for `/status` and `/metrics`: rates, durations, drops and errors."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from telepresence.runtime.hardware import gpu_bytes_in_use, resident_bytes
from telepresence.runtime.mailbox import Mailbox

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

log = logging.getLogger("telepresence")

WINDOW_S: Final = 3.0
"""Seconds over which rates and latencies are computed."""

MAX_DURATIONS: Final = 300
"""Number of newest rounds of a stage of which percentiles are computed: ten seconds of frames."""

MAX_ERRORS: Final = 8
"""Maximum number of distinct errors in `/status`."""
MAX_ERROR_CHARS: Final = 240
"""Maximum length of an error message in `/status`, in characters."""


class RateCounter:
    """Rate of events over the last `WINDOW_S` seconds.  Every method may be called from any thread.

    Attributes:
        total: number of all events so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._events: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def tick(self, now: float | None = None, count: int = 1) -> None:
        """Count ``count`` events at monotonic second ``now`` (default: now)."""
        moment = time.monotonic() if now is None else now
        with self._lock:
            self.total += count
            self._events.append((moment, count))
            self._forget(moment)

    def read(self, now: float | None = None) -> float:
        """Events per second at monotonic second ``now`` (default: now)."""
        moment = time.monotonic() if now is None else now
        with self._lock:
            self._forget(moment)
            count = sum(count for _, count in self._events)
            if len(self._events) < 2:
                return count / WINDOW_S
            # The time runs up to now, not to the last event, so that the rate of a stopped stage falls to zero.
            return count / max(moment - self._events[0][0], WINDOW_S / 2)

    def _forget(self, now: float) -> None:
        while self._events and self._events[0][0] < now - WINDOW_S:
            self._events.popleft()


class DurationWindow:
    """Percentiles of the newest `MAX_DURATIONS` durations."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=MAX_DURATIONS)

    def add(self, seconds: float) -> None:
        """Append a duration."""
        self._seconds.append(seconds)

    def read_ms(self) -> dict[str, float] | None:
        """Percentiles ``p50``, ``p95``, ``p99`` and ``max`` in ms; None before the first duration."""
        found = sorted(self._seconds.copy())
        if not found:
            return None
        ranks = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {
            name: round(1e3 * found[min(int(rank * len(found)), len(found) - 1)], 1) for name, rank in ranks.items()
        }


class ErrorLog:
    """The newest distinct errors, each in one line with the number of its occurrences.  Any thread, by a lock."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._lock = threading.Lock()

    def record(self, where: str, text: str) -> int:
        """Add an error of the stage ``where``; returns the number of its occurrences."""
        key = (where, " ".join(text.split())[:MAX_ERROR_CHARS])
        with self._lock:
            count = self._counts.get(key, 0) + 1
            self._counts[key] = count
            self._counts.move_to_end(key)
            while len(self._counts) > MAX_ERRORS:
                self._counts.popitem(last=False)
            return count

    def clear(self, where: str) -> None:
        """Remove the errors of a stage that works again."""
        with self._lock:
            for key in [key for key in self._counts if key[0] == where]:
                del self._counts[key]

    def lines(self) -> list[str]:
        """The errors as ``stage: text``, newest last, with ``(n times)`` after those that occurred again."""
        with self._lock:
            return [
                f"{where}: {text}" + (f" ({count} times)" if count > 1 else "")
                for (where, text), count in self._counts.items()
            ]


class Telemetry:
    """Counters, durations and errors of one daemon.  Every method but `measure_memory` may be called from any thread.

    Attributes:
        started: monotonic second of the start.
        captured, tracked, found: rates of camera frames, of tracked frames, and of those that show a face.
        shown, avatar: rates of rendered frames, and of those that show the avatar.
        trained, samples: rates of training steps, and of field samples that they evaluate.
        memory: memory in use in 10^6 bytes: ``rss_mb`` of this process, ``device_mb`` of the GPU by all processes; and
            ``budget_mb``, the memory budget of this process, None without one.
        errors: newest errors, by stage.
    """

    def __init__(self, memory_budget_mb: int = 0) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.started = time.monotonic()
        self.captured, self.tracked, self.found = RateCounter(), RateCounter(), RateCounter()
        self.shown, self.avatar = RateCounter(), RateCounter()
        self.trained, self.samples = RateCounter(), RateCounter()
        budget_mb = memory_budget_mb or None
        self.memory: dict[str, float | None] = {"rss_mb": None, "device_mb": None, "budget_mb": budget_mb}
        self._memory_at = -math.inf
        self._times: dict[str, DurationWindow] = {}
        self.errors = ErrorLog()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=256)
        self._mailboxes: list[Mailbox[Any]] = []
        self._registry: CollectorRegistry = CollectorRegistry()  # two daemons in one process must not collide
        seconds = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0)
        self._stages = Histogram(
            "telepresence_stage_seconds",
            "Duration of one round of a stage, in seconds",
            ["stage"],
            registry=self._registry,
            buckets=seconds,
        )
        self._latency = Histogram(
            "telepresence_latency_seconds",
            "Time from the capture of a frame to its rendered frame, in seconds",
            registry=self._registry,
            buckets=seconds,
        )
        self._counts = Counter(
            "telepresence_events", "Counted events, such as errors of a stage", ["event"], registry=self._registry
        )
        self._event_totals: dict[str, int] = {}

    def watch(self, mailboxes: Iterable[Mailbox[Any]]) -> None:
        """Report the dropped values of these mailboxes."""
        self._mailboxes.extend(mailboxes)

    def stage(self, name: str, seconds: float) -> None:
        """Record the duration of one round of a stage."""
        self._stages.labels(name).observe(seconds)
        self._times.setdefault(name, DurationWindow()).add(seconds)

    def stage_ms(self, name: str) -> dict[str, float] | None:
        """Percentiles in ms of the newest rounds of a stage; None if none was recorded."""
        times = self._times.get(name)
        return times.read_ms() if times is not None else None

    def tracking_health(self) -> float | None:
        """Fraction of the newest camera frames in which a face was tracked; None while no frames are tracked."""
        tracked = self.tracked.read()
        return min(1.0, self.found.read() / tracked) if tracked else None

    def measure_memory(self, device: str, now: float) -> None:
        """Measure the memory in use at monotonic second ``now``, at most once per second."""
        if now - self._memory_at >= 1.0:
            self._memory_at = now
            self.memory = self.memory | {
                "rss_mb": round(resident_bytes() / 1e6, 1),
                "device_mb": _device_mb() if device == "cuda" else None,
            }

    def register(self, collector: Collector) -> None:
        """Add the metrics of a Prometheus collector to `metrics`."""
        self._registry.register(collector)

    def event(self, name: str) -> None:
        """Count an event."""
        self._counts.labels(name).inc()
        self._event_totals[name] = self._event_totals.get(name, 0) + 1

    def error(self, where: str, text: str) -> int:
        """Record an error of a stage; returns the number of occurrences of the same error."""
        self.event(f"{where}_error")
        return self.errors.record(where, text)

    def report(self, where: str, text: str | None) -> None:
        """Record an error of a stage, and log it if it is new; None removes the errors of the stage."""
        if text is None:
            self.errors.clear(where)
        elif self.error(where, text) == 1:
            log.warning("%s: %s", where, text, extra={"event": "error", "stage": where, "fields": {"error": text}})

    def latency(self, seconds: float) -> None:
        """Record the seconds from the capture of a frame until its rendered frame was passed to the outputs."""
        self._latency.observe(seconds)
        self._latencies.append((time.monotonic(), seconds))

    def latency_ms(self) -> float | None:
        """Median latency in ms of the last `WINDOW_S` seconds; None if no frame was rendered."""
        since = time.monotonic() - WINDOW_S
        recent = [seconds for moment, seconds in list(self._latencies) if moment >= since]
        return 1000.0 * median(recent) if recent else None

    def drops(self) -> dict[str, int]:
        """Number of dropped values by mailbox, and number of errors by stage."""
        unread = {mailbox.name: mailbox.drops for mailbox in self._mailboxes}
        return unread | {name: n for name, n in self._event_totals.items() if name.endswith("_error")}

    def metrics(self) -> str:
        """All metrics, in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry).decode()


def _device_mb() -> float | None:
    """Memory in use on the GPU by all processes, in 10^6 bytes; None if the GPU does not respond."""
    try:
        return round(gpu_bytes_in_use() / 1e6, 1)
    except RuntimeError:  # the stage that computes on the lost GPU reports it
        return None

"""What the daemon knows about itself: rates, times, drops and errors, for `/status` and `/metrics`."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from telepresence.runtime.hardware import gpu_bytes_in_use, resident_bytes
from telepresence.runtime.mailbox import Mailbox

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger("telepresence")

WINDOW_S: Final = 3.0
"""Seconds over which rates and latencies are taken."""

ROUNDS: Final = 300
"""Newest rounds of a stage that its times are told of: ten seconds of pictures."""

MAX_ERRORS: Final = 8
MAX_ERROR_CHARS: Final = 240


class RateCounter:
    """Events a second over the last `WINDOW_S` seconds; an event may count for many."""

    def __init__(self) -> None:
        self.total = 0
        self._events: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def tick(self, now: float | None = None, count: int = 1) -> None:
        moment = time.monotonic() if now is None else now
        with self._lock:
            self.total += count
            self._events.append((moment, count))
            self._forget(moment)

    def read(self, now: float | None = None) -> float:
        moment = time.monotonic() if now is None else now
        with self._lock:
            self._forget(moment)
            count = sum(count for _, count in self._events)
            if len(self._events) < 2:
                return count / WINDOW_S
            # Up to now, not to the last event: a stopped stage falls to zero instead of freezing at its rate.
            return count / max(moment - self._events[0][0], WINDOW_S / 2)

    def _forget(self, now: float) -> None:
        while self._events and self._events[0][0] < now - WINDOW_S:
            self._events.popleft()


class DurationWindow:
    """Durations of the newest `ROUNDS` events."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=ROUNDS)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def read_ms(self) -> dict[str, float] | None:
        """``p50``, ``p95``, ``p99`` and ``max`` in ms; None before the first."""
        found = sorted(self._seconds.copy())
        if not found:
            return None
        ranks = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {
            name: round(1e3 * found[min(int(rank * len(found)), len(found) - 1)], 1) for name, rank in ranks.items()
        }


class ErrorLog:
    """The newest distinct one-line errors, each with the number of times it came; newest last."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._lock = threading.Lock()

    def record(self, where: str, text: str) -> int:
        """Note an error of the stage ``where``; how often it has come now."""
        key = (where, " ".join(text.split())[:MAX_ERROR_CHARS])
        with self._lock:
            count = self._counts.get(key, 0) + 1
            self._counts[key] = count
            self._counts.move_to_end(key)
            while len(self._counts) > MAX_ERRORS:
                self._counts.popitem(last=False)
            return count

    def clear(self, where: str) -> None:
        """Forget the errors of a stage that works again."""
        with self._lock:
            for key in [key for key in self._counts if key[0] == where]:
                del self._counts[key]

    def lines(self) -> list[str]:
        """One line an error: ``stage: text`` with ``(n times)`` behind those that came again."""
        with self._lock:
            return [
                f"{where}: {text}" + (f" ({count} times)" if count > 1 else "")
                for (where, text), count in self._counts.items()
            ]


class Telemetry:
    """Counters of one daemon, in a registry of its own (two daemons in one process do not collide)."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.started = time.monotonic()
        self.captured, self.tracked, self.found = RateCounter(), RateCounter(), RateCounter()  # pictures; those that show a face
        self.shown, self.avatar = RateCounter(), RateCounter()  # pictures; those of the avatar
        self.trained, self.samples = RateCounter(), RateCounter()  # steps; samples of the field
        self.memory: dict[str, float | None] = {"rss_mb": None, "device_mb": None}
        self._weighed = -math.inf
        self._times: dict[str, DurationWindow] = {}
        self.errors = ErrorLog()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=256)
        self._mailboxes: list[Mailbox[Any]] = []
        self._registry: CollectorRegistry = CollectorRegistry()
        seconds = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0)
        self._stages = Histogram(
            "telepresence_stage_seconds", "Time of one round", ["stage"], registry=self._registry, buckets=seconds
        )
        self._latency = Histogram(
            "telepresence_latency_seconds", "From capture to shown", registry=self._registry, buckets=seconds
        )
        self._counts = Counter("telepresence_events", "Things that happened", ["event"], registry=self._registry)
        self._event_totals: dict[str, int] = {}

    def watch(self, mailboxes: Iterable[Mailbox[Any]]) -> None:
        """Report the drops of these mailboxes."""
        self._mailboxes.extend(mailboxes)

    def stage(self, name: str, seconds: float) -> None:
        """One round of a stage took this long."""
        self._stages.labels(name).observe(seconds)
        self._times.setdefault(name, DurationWindow()).add(seconds)

    def stage_ms(self, name: str) -> dict[str, float] | None:
        """DurationWindow of the newest rounds of a stage: median, percentiles, longest; None if none was measured."""
        times = self._times.get(name)
        return times.read_ms() if times is not None else None

    def tracking_health(self) -> float | None:
        """Part of the newest pictures in which a face was tracked; None while no pictures are tracked."""
        tracked = self.tracked.read()
        return min(1.0, self.found.read() / tracked) if tracked else None

    def measure_memory(self, device: str, now: float) -> None:
        """Look at the memory of this process, and at what is used of the device, once a second at most."""
        if now - self._weighed >= 1.0:
            self._weighed = now
            self.memory = {
                "rss_mb": round(resident_bytes() / 1e6, 1),
                "device_mb": _device_mb() if device == "cuda" else None,
            }

    def export(self, read: Callable[[], Mapping[str, Any]]) -> None:
        """Let `metrics` tell, too, what the status that ``read`` gives says in numbers."""
        from telepresence.call.metrics import StatusCollector

        self._registry.register(StatusCollector(read))

    def event(self, name: str) -> None:
        """Count something that happened, such as a message that was dropped."""
        self._counts.labels(name).inc()
        self._event_totals[name] = self._event_totals.get(name, 0) + 1

    def error(self, where: str, text: str) -> int:
        """Note and count an error of a stage; how often this very one has come now."""
        self.event(f"{where}_error")
        return self.errors.record(where, text)

    def note(self, where: str, text: str | None) -> None:
        """An error for `/status`, and for the log when it is new; None: it works again."""
        if text is None:
            self.errors.clear(where)
        elif self.error(where, text) == 1:
            log.warning("%s: %s", where, text, extra={"event": "trouble", "stage": where, "fields": {"error": text}})

    def latency(self, seconds: float) -> None:
        """A picture was shown this long after the moment that it shows."""
        self._latency.observe(seconds)
        self._latencies.append((time.monotonic(), seconds))

    def latency_ms(self) -> float | None:
        """Median latency of the last seconds, None if nothing was shown."""
        since = time.monotonic() - WINDOW_S
        recent = [seconds for moment, seconds in list(self._latencies) if moment >= since]
        return 1000.0 * median(recent) if recent else None

    def drops(self) -> dict[str, int]:
        """Values that nobody read in time, by mailbox, and messages that were refused."""
        unread = {mailbox.name: mailbox.drops for mailbox in self._mailboxes}
        return unread | {name: n for name, n in self._event_totals.items() if name.endswith("_error")}

    def metrics(self) -> str:
        """Everything, in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry).decode()


def _device_mb() -> float | None:
    """Memory in use on the GPU by all processes, in 10^6 bytes; None if the GPU does not respond."""
    try:
        return round(gpu_bytes_in_use() / 1e6, 1)
    except RuntimeError:  # the stage that computes on the lost GPU reports it
        return None

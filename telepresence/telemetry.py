"""What the daemon knows about itself: rates, times, drops and errors, for `/status` and `/metrics`."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from telepresence.mailbox import Mailbox

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

WINDOW_S: Final = 3.0
"""Seconds over which rates and latencies are taken."""

MAX_ERRORS: Final = 8
MAX_ERROR_CHARS: Final = 240


class Rate:
    """Events a second over the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self.total = 0
        self._times: deque[float] = deque()
        self._lock = threading.Lock()

    def tick(self, now: float | None = None) -> None:
        moment = time.monotonic() if now is None else now
        with self._lock:
            self.total += 1
            self._times.append(moment)
            self._forget(moment)

    def read(self, now: float | None = None) -> float:
        moment = time.monotonic() if now is None else now
        with self._lock:
            self._forget(moment)
            if len(self._times) < 2:
                return len(self._times) / WINDOW_S
            # Up to now, not to the last event: a stopped stage falls to zero instead of freezing at its rate.
            return len(self._times) / max(moment - self._times[0], WINDOW_S / 2)

    def _forget(self, now: float) -> None:
        while self._times and self._times[0] < now - WINDOW_S:
            self._times.popleft()


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
        self.captured, self.tracked, self.shown, self.avatar, self.trained = (Rate() for _ in range(5))
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

    def event(self, name: str) -> None:
        """Count something that happened, such as a message that was dropped."""
        self._counts.labels(name).inc()
        self._event_totals[name] = self._event_totals.get(name, 0) + 1

    def error(self, where: str, text: str) -> int:
        """Note and count an error of a stage; how often this very one has come now."""
        self.event(f"{where}_error")
        return self.errors.record(where, text)

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

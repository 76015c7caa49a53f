"""What the stream knows about itself."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

WINDOW_S = 2.0
STALL_S = 0.5


@dataclass(frozen=True)
class LineStats:
    """One encode: how many viewers get it, and the rate at which it aims."""

    viewers: int
    kbps: int


@dataclass(frozen=True)
class StreamStats:
    """Figures of the last two seconds of the stream.

    ``fps`` counts the pictures issued at the declared pace, new or repeated.  ``latency_ms`` is the median time from
    capture to the end of the encode (of each new picture, not of repeats), ``encode_ms`` the median time of colour
    conversion and encode; both None while nobody watches.  ``encoded`` and ``keyframes`` count since the start, of all
    lines.  ``encoder`` makes the H.264; ``lines`` are named by codec and tier, as in ``H264 512@30``.
    """

    fps: float
    latency_ms: float | None
    encode_ms: float | None
    kbps: float
    encoded: int
    keyframes: int
    encoder: str = "x264"
    lines: Mapping[str, LineStats] = field(default_factory=dict)


class StreamMeter:
    """Collects the figures on the encode thread; any thread may ask for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._issued: deque[float] = deque()
        self._encodes: deque[tuple[float, float, float | None, int]] = deque()  # (time, encode, latency, bytes)
        self._encoded = 0
        self._keyframes = 0

    def issued(self, now: float) -> None:
        """A picture was due and left (or had nobody to go to) at ``now`` seconds."""
        with self._lock:
            self._issued.append(now)
            _forget(self._issued, now)

    def encoded(self, now: float, encode_s: float, latency_s: float | None, size: int, keyframe: bool) -> None:
        """A picture was encoded; ``latency_s`` None for a repeat, ``size`` in bytes (0: encoded elsewhere)."""
        with self._lock:
            self._encodes.append((now, encode_s, latency_s, size))
            while self._encodes[0][0] < now - WINDOW_S:
                self._encodes.popleft()
            self._encoded += 1
            self._keyframes += keyframe

    def read(self, now: float) -> StreamStats:
        with self._lock:
            _forget(self._issued, now)
            encodes = [e for e in self._encodes if e[0] >= now - WINDOW_S]
            latencies = [latency for _, _, latency, _ in encodes if latency is not None]
            # Up to the last picture, so that the figure is exact; a stream that has stalled is slow nevertheless.
            span = max(self._issued[-1], now - STALL_S) - self._issued[0] if self._issued else 0.0
            return StreamStats(
                fps=round((len(self._issued) - 1) / span, 1) if span > 0 and len(self._issued) > 1 else 0.0,
                latency_ms=round(1e3 * median(latencies), 1) if latencies else None,
                encode_ms=round(1e3 * median(e[1] for e in encodes), 1) if encodes else None,
                kbps=round(8e-3 * sum(e[3] for e in encodes) / WINDOW_S, 1),
                encoded=self._encoded,
                keyframes=self._keyframes,
            )


def _forget(times: deque[float], now: float) -> None:
    while times and times[0] < now - WINDOW_S:
        times.popleft()

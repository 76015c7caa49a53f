"""Statistics of the video stream: frame rate, latency, encode time and bitrate."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Final

WINDOW_S: Final = 2.0
"""Seconds over which the statistics of the stream are taken."""
STALL_S: Final = 0.5
"""Seconds without a frame after which the frame rate falls, although its window ends with the last frame."""


@dataclass(frozen=True)
class RenditionStats:
    """Number of viewers of a rendition, and its target bitrate in kbit/s."""

    viewers: int
    kbps: int


@dataclass(frozen=True)
class StreamStats:
    """Statistics of the stream over the last two seconds.

    Attributes:
        fps: frames sent a second, new or repeated.
        latency_ms: median time in ms from the capture of a new frame to the end of its encode; None without viewers.
        encode_ms: median time in ms of colour conversion and encoding of one frame; None without viewers.
        kbps: sum of the bitrates of all renditions in kbit/s.
        encoded: frames encoded since the start, of all renditions.
        keyframes: keyframes encoded since the start, of all renditions.
        encoder: the H.264 encoder in use, ``x264`` or ``nvenc``.
        renditions: viewers and bitrate of each rendition, by codec and tier, like ``H264 512@30``.
        failed: peers, viewers and cameras, whose offer was answered but that could not connect, since the start.
        failure: reason why the last of them could not connect, like ``DTLS: …``; None if all could.
    """

    fps: float
    latency_ms: float | None
    encode_ms: float | None
    kbps: float
    encoded: int
    keyframes: int
    encoder: str = "x264"
    renditions: Mapping[str, RenditionStats] = field(default_factory=dict)
    failed: int = 0
    failure: str | None = None


class StreamMeter:
    """Collects the statistics of the stream on the encode thread; `read` may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: deque[float] = deque()
        self._encodes: deque[tuple[float, float, float | None, int]] = deque()  # (time, encode, latency, bytes)
        self._encoded = 0
        self._keyframes = 0

    def count_sent(self, now: float) -> None:
        """Count a frame that was due at ``now`` seconds, whether or not there are viewers."""
        with self._lock:
            self._sent.append(now)
            _drop_old(self._sent, now)

    def count_encoded(self, now: float, encode_s: float, latency_s: float | None, size: int, keyframe: bool) -> None:
        """Count an encoded frame of ``size`` bytes (0: encoded elsewhere); ``latency_s``: None for a repeated frame."""
        with self._lock:
            self._encodes.append((now, encode_s, latency_s, size))
            while self._encodes[0][0] < now - WINDOW_S:
                self._encodes.popleft()
            self._encoded += 1
            self._keyframes += keyframe

    def read(self, now: float) -> StreamStats:
        """Statistics over the last two seconds before ``now``, without the renditions."""
        with self._lock:
            _drop_old(self._sent, now)
            encodes = [e for e in self._encodes if e[0] >= now - WINDOW_S]
            latencies = [latency for _, _, latency, _ in encodes if latency is not None]
            # The span ends with the last frame, which makes the rate exact, but a stalled stream must not seem fast.
            span = max(self._sent[-1], now - STALL_S) - self._sent[0] if self._sent else 0.0
            return StreamStats(
                fps=round((len(self._sent) - 1) / span, 1) if span > 0 and len(self._sent) > 1 else 0.0,
                latency_ms=round(1e3 * median(latencies), 1) if latencies else None,
                encode_ms=round(1e3 * median(e[1] for e in encodes), 1) if encodes else None,
                kbps=round(8e-3 * sum(e[3] for e in encodes) / WINDOW_S, 1),
                encoded=self._encoded,
                keyframes=self._keyframes,
            )


def _drop_old(times: deque[float], now: float) -> None:
    while times and times[0] < now - WINDOW_S:
        times.popleft()

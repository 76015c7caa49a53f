"""Sound as it crosses threads, and the bus that carries it from whoever speaks to all who listen."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]
"""(N, 2) int16: left and right, `RATE` pairs a second."""

RATE: Final = 48_000  # of Opus in WebRTC (RFC 7587)
CHANNELS: Final = 2

WORD_S: Final = 0.5
"""For so long after its last sound nobody else is heard but the microphone."""
TOLERANCE_S: Final = 0.03
"""Capture times of sound that goes on may be so far off: they are estimates."""
MAX_GAP_S: Final = 2.0
"""A longer pause in the capture times begins a new stretch of sound."""


@dataclass(frozen=True)
class SoundChunk:
    """Some milliseconds of sound: ``samples`` (N, 2) int16 at 48 kHz.

    ``t_capture_ns`` is the monotonic time at which its first sample was captured, on the clock of the pictures: what
    has the same capture time belongs together.
    """

    t_capture_ns: int
    samples: Samples

    @property
    def end_ns(self) -> int:
        """The capture time of the sample after the last."""
        return self.t_capture_ns + round(len(self.samples) * 1e9 / RATE)


Ear = Callable[[SoundChunk], None]


class SoundBus:
    """Hands every chunk to all listeners, on the thread of whoever speaks; listeners must not block.

    A browser's microphone goes before the sound of the daemon's own source.  While ``muted``, everybody hears silence
    that is as long as what was said.
    """

    def __init__(self) -> None:
        self.muted = False
        self.delay_s: float | None = None  # from capture to leaving for viewers; None: nothing leaves
        self._ears: tuple[Ear, ...] = ()
        self._lock = threading.Lock()
        self._microphone_at = self._source_at = -math.inf

    @property
    def heard(self) -> str | None:
        """Who speaks now: ``microphone`` or ``source``; None while nobody does."""
        now = time.monotonic()
        if now - self._microphone_at < WORD_S:
            return "microphone"
        return "source" if now - self._source_at < WORD_S else None

    def status(self) -> dict[str, Any]:
        """What `/status` shows (docs/protocols-http.md)."""
        delay = self.delay_s
        delay_ms = round(1e3 * delay, 1) if delay is not None else None
        return {"heard": self.heard, "muted": self.muted, "delay_ms": delay_ms}

    def listen(self, ear: Ear) -> None:
        with self._lock:
            self._ears = (*self._ears, ear)

    def forget(self, ear: Ear) -> None:
        with self._lock:
            self._ears = tuple(other for other in self._ears if other != ear)

    def play(self, chunk: SoundChunk) -> None:
        """Sound of the daemon's own source."""
        now = time.monotonic()
        if now - self._microphone_at >= WORD_S:
            self._source_at = now
            self._hand_on(chunk)

    def speak(self, chunk: SoundChunk) -> None:
        """Sound of a browser's microphone."""
        self._microphone_at = time.monotonic()
        self._hand_on(chunk)

    def _hand_on(self, chunk: SoundChunk) -> None:
        if self.muted:
            chunk = SoundChunk(chunk.t_capture_ns, np.zeros_like(chunk.samples))
        for ear in self._ears:
            ear(chunk)


class Timeline:
    """Chunks as one stretch of samples without holes: what is missing becomes silence, what comes twice is dropped.

    ``start_ns`` is the capture time of the first sample, ``count`` how many there are.
    """

    def __init__(self, follows: bool = False) -> None:
        """``follows``: the stretch moves along with capture times that drift, else they are made good for in steps."""
        self.start_ns = 0.0
        self.count = 0
        self._follows = follows

    @property
    def end_ns(self) -> float:
        return self.start_ns + self.count * 1e9 / RATE

    def begin(self, t_ns: float) -> None:
        """An empty stretch that starts at ``t_ns``."""
        self.start_ns, self.count = float(t_ns), 0

    def continues(self, chunk: SoundChunk) -> bool:
        """Whether ``chunk`` goes on from here, give or take `MAX_GAP_S`."""
        return abs(chunk.t_capture_ns - self.end_ns) <= MAX_GAP_S * 1e9

    def append(self, chunk: SoundChunk, tolerance_s: float = TOLERANCE_S) -> Samples:
        """The samples that ``chunk`` adds to the stretch, with the silence before them."""
        gap_s = (chunk.t_capture_ns - self.end_ns) * 1e-9
        samples = chunk.samples
        if gap_s > tolerance_s:
            samples = np.concatenate([np.zeros((round(gap_s * RATE), CHANNELS), np.int16), samples])
        elif gap_s < -tolerance_s:
            samples = samples[round(-gap_s * RATE) :]
        elif self._follows:
            self.start_ns += 0.02 * gap_s * 1e9
        self.count += len(samples)
        return samples

"""Lip sync: a delay line that holds audio back as long as its video takes, without audible breaks."""

from __future__ import annotations

import math
import threading
from collections import deque
from statistics import median
from typing import Final

import numpy as np

from telepresence.runtime.audio import CHANNELS, RATE, AudioChunk, AudioTimeline, Samples

BLOCK: Final = RATE // 50
"""Samples in a block: 20 ms, the length of an Opus packet."""
BLOCK_S: Final = BLOCK / RATE
"""Length of a block in seconds."""

WINDOW_S: Final = 5.0
"""Seconds over which latencies and lateness are averaged."""
MAX_DELAY_S: Final = 0.5
"""Maximum delay of the audio in seconds."""
SLEW: Final = 0.005
"""Change of the delay in seconds a second during speech: changes the pitch by half a percent, which is not audible."""
QUIET_SLEW: Final = 0.5
"""Change of the delay in seconds a second between words."""
QUIET: Final = 200
"""Amplitude (of 32768) below which audio counts as silence between words."""
NEAR_S: Final = 0.003
"""Difference in seconds between actual and wanted delay that is not corrected."""
EDGE: Final = 8
"""Samples needed in addition to a block when it is played a little faster."""
HOLD_S: Final = MAX_DELAY_S + 1.5
"""Length of the audio that is kept, in seconds."""
PUNCTUAL: Final = 0.97
"""Part of the blocks that have to arrive in time; the delay grows until they do."""


class RollingWindow:
    """Values of the last `WINDOW_S` seconds, with their median and quantiles."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque()

    def add(self, value: float, now: float) -> None:
        """Add a value at ``now`` seconds, and drop old ones."""
        self._values.append((now, value))
        while self._values[0][0] < now - WINDOW_S:
            self._values.popleft()

    def median(self) -> float | None:
        """Median; None without values."""
        return median(value for _, value in self._values) if self._values else None

    def quantile(self, part: float) -> float | None:
        """Smallest value that is not less than ``part`` of all values; None without values."""
        values = sorted(value for _, value in self._values)
        return values[math.ceil(part * (len(values) - 1))] if values else None


class DelayLine:
    """Delays audio by a variable time, without audible breaks when the delay changes.

    During speech the delay changes by at most `SLEW`, by playing a little faster or slower; between words it changes
    fast.  Audio that often arrives too late increases the delay.  `put` may be called by any thread, `read` by one.

    Attributes:
        delay_s: current delay in seconds from capture to playing; None while nothing is played.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._timeline = AudioTimeline(follows=True)
        self._held: Samples = np.zeros((0, CHANNELS), np.int16)
        self._needed = RollingWindow()  # s, delays with which each block would have arrived just in time
        self._cursor: float | None = None  # position on the timeline of the next sample to play; None: not playing
        self._gain = 0.0
        self._read_ns = 0
        self._seen = 0  # samples on the timeline at the last read
        self._missing_s = -math.inf  # s, the largest delay that was needed since audio last arrived
        self.delay_s: float | None = None

    def put(self, chunk: AudioChunk) -> None:
        """Add audio that has arrived."""
        with self._lock:
            if not self._timeline.count or not self._timeline.continues(chunk):
                self._timeline.begin(chunk.t_capture_ns)
                self._held = self._held[:0]
                self._cursor, self._gain = None, 0.0
            self._held = np.concatenate([self._held, self._timeline.append(chunk)])[-round(HOLD_S * RATE) :]

    def read(self, now_ns: int, delay_s: float) -> Samples | None:
        """The (`BLOCK`, 2) samples to play from ``now_ns`` on, captured ``delay_s`` before or, if late, more.

        Returns None while there is nothing to play.  To be called once a block; the audio of blocks for which it was
        not called is skipped.
        """
        with self._lock:
            skipped = round((now_ns - self._read_ns) * 1e-9 / BLOCK_S) - 1
            self._read_ns = now_ns
            if self._cursor is not None and skipped > 0:
                self._cursor, self._gain = self._cursor + skipped * BLOCK, 0.0
            self._measure_needed_delay(now_ns)
            delay_s = min(max(delay_s, self._needed.quantile(PUNCTUAL) or 0.0, 0.0), MAX_DELAY_S)
            wanted = (now_ns - delay_s * 1e9 - self._timeline.start_ns) * 1e-9 * RATE
            first, end = self._timeline.count - len(self._held), self._timeline.count
            if self._cursor is None or not first <= self._cursor:
                if not first <= wanted <= end - BLOCK - EDGE // 2:
                    self._cursor = self.delay_s = None
                    return None
                self._cursor = wanted
            position = self._cursor - first
            error_s = (wanted - self._cursor) / RATE
            speed = 1.0 + self._slew(error_s, int(position))
            where = position + speed * np.arange(BLOCK)
            if where[-1] + 1 >= len(self._held):  # too late: fade out, and begin again when more has arrived
                where = where[where + 1 < len(self._held)]
                block = np.zeros((BLOCK, CHANNELS))
                block[: len(where)] = self._interpolate(where) * np.linspace(self._gain, 0.0, len(where))[:, None]
                self._cursor, self._gain, self.delay_s = None, 0.0, None
                return block.astype(np.int16)
            block = self._interpolate(where) * np.linspace(self._gain, 1.0, BLOCK)[:, None]
            self._gain = 1.0
            self._cursor += speed * BLOCK
            self.delay_s = delay_s + error_s
            return np.rint(block).astype(np.int16)

    def _measure_needed_delay(self, now_ns: int) -> None:
        needed_s = (now_ns - self._timeline.end_ns) * 1e-9 + (BLOCK + EDGE) / RATE
        if self._timeline.count != self._seen:  # more has arrived: what was missing came late, and was not the end
            if -math.inf < self._missing_s < MAX_DELAY_S:
                self._needed.add(self._missing_s, now_ns * 1e-9)
            self._seen, self._missing_s = self._timeline.count, -math.inf
        self._missing_s = max(self._missing_s, needed_s)

    def _slew(self, error_s: float, position: int) -> float:
        if abs(error_s) < NEAR_S:
            return 0.0
        soon = self._held[position : position + 2 * BLOCK]
        limit = QUIET_SLEW if int(np.abs(soon.astype(np.int32)).max(initial=0)) < QUIET else SLEW
        return min(max(error_s / (10 * BLOCK_S), -limit), limit)

    def _interpolate(self, where: np.ndarray) -> np.ndarray:
        """Samples (N, 2) float64 at fractional positions ``where`` (N,) of the kept audio, linearly interpolated."""
        if len(where) and where[0].is_integer() and where[-1] - where[0] == len(where) - 1:
            return self._held[int(where[0]) : int(where[-1]) + 1].astype(np.float64)
        left = where.astype(np.int64)
        weight = (where - left)[:, None]
        return (1.0 - weight) * self._held[left] + weight * self._held[left + 1]

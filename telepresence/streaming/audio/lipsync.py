"""Sound that waits for its pictures: how long the stream takes, and a line that holds sound back for so long."""

from __future__ import annotations

import math
import threading
from collections import deque
from statistics import median
from typing import Final

import numpy as np

from telepresence.runtime.audio import CHANNELS, RATE, Samples, SoundChunk, Timeline

BLOCK: Final = RATE // 50
"""Samples that are handed out at a time: 20 ms, an Opus packet."""
BLOCK_S: Final = BLOCK / RATE

WINDOW_S: Final = 5.0
MAX_DELAY_S: Final = 0.5
SLEW: Final = 0.005
"""Seconds a second by which a delay that can be heard to change changes: half a percent of the pitch."""
QUIET_SLEW: Final = 0.5
"""The same between words."""
QUIET: Final = 200
"""Amplitude (of 32768) below which nothing is said."""
NEAR_S: Final = 0.003
"""A delay so near to the wanted one is left alone."""
EDGE: Final = 8
"""Samples more than a block that playing a little faster may take."""
HOLD_S: Final = MAX_DELAY_S + 1.5
PUNCTUAL: Final = 0.97
"""Part of the blocks that shall be there in time."""


class Recent:
    """Values of the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque()

    def add(self, value: float, now: float) -> None:
        self._values.append((now, value))
        while self._values[0][0] < now - WINDOW_S:
            self._values.popleft()

    def median(self) -> float | None:
        return median(value for _, value in self._values) if self._values else None

    def rank(self, part: float) -> float | None:
        values = sorted(value for _, value in self._values)
        return values[math.ceil(part * (len(values) - 1))] if values else None


class DelayLine:
    """Takes sound as it was captured and hands it out a given delay later, without a break when the delay changes.

    While something is said the delay changes by at most `SLEW`, by playing a little faster or slower; between words
    it changes at once.  Sound that comes later than it should be heard makes the delay larger.  `put` may be called on
    any thread, `read` on one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line = Timeline(follows=True)
        self._held: Samples = np.zeros((0, CHANNELS), np.int16)
        self._needed = Recent()  # the delays with which what was wanted would just have been there
        self._cursor: float | None = None  # number in the stretch of the next sample to be heard; None: not playing
        self._gain = 0.0
        self._read_ns = 0
        self._seen = 0  # samples of the stretch at the last read
        self._missing_s = -math.inf  # the largest delay that was needed since more came
        self.delay_s: float | None = None
        """How much later than captured the sound is heard now; None while there is none."""

    def put(self, chunk: SoundChunk) -> None:
        """Sound that has arrived."""
        with self._lock:
            if not self._line.count or not self._line.continues(chunk):
                self._line.begin(chunk.t_capture_ns)
                self._held = self._held[:0]
                self._cursor, self._gain = None, 0.0
            self._held = np.concatenate([self._held, self._line.append(chunk)])[-round(HOLD_S * RATE) :]

    def read(self, now_ns: int, delay_s: float) -> Samples | None:
        """The `BLOCK` samples to be heard from ``now_ns`` on: captured ``delay_s`` before, or more if they come late.

        None where there is nothing to be heard.  Call it once a block; what was to be heard in blocks that were left
        out is skipped.
        """
        with self._lock:
            skipped = round((now_ns - self._read_ns) * 1e-9 / BLOCK_S) - 1
            self._read_ns = now_ns
            if self._cursor is not None and skipped > 0:
                self._cursor, self._gain = self._cursor + skipped * BLOCK, 0.0
            self._note_needed(now_ns)
            delay_s = min(max(delay_s, self._needed.rank(PUNCTUAL) or 0.0, 0.0), MAX_DELAY_S)
            wanted = (now_ns - delay_s * 1e9 - self._line.start_ns) * 1e-9 * RATE
            first, end = self._line.count - len(self._held), self._line.count
            if self._cursor is None or not first <= self._cursor:
                if not first <= wanted <= end - BLOCK - EDGE // 2:
                    self._cursor = self.delay_s = None
                    return None
                self._cursor = wanted
            position = self._cursor - first
            error_s = (wanted - self._cursor) / RATE
            speed = 1.0 + self._slew(error_s, int(position))
            where = position + speed * np.arange(BLOCK)
            if where[-1] + 1 >= len(self._held):  # late: fade out, and begin again when there is more
                where = where[where + 1 < len(self._held)]
                block = np.zeros((BLOCK, CHANNELS))
                block[: len(where)] = self._between(where) * np.linspace(self._gain, 0.0, len(where))[:, None]
                self._cursor, self._gain, self.delay_s = None, 0.0, None
                return block.astype(np.int16)
            block = self._between(where) * np.linspace(self._gain, 1.0, BLOCK)[:, None]
            self._gain = 1.0
            self._cursor += speed * BLOCK
            self.delay_s = delay_s + error_s
            return np.rint(block).astype(np.int16)

    def _note_needed(self, now_ns: int) -> None:
        needed_s = (now_ns - self._line.end_ns) * 1e-9 + (BLOCK + EDGE) / RATE
        if self._line.count != self._seen:  # it goes on: what was missing was late, and not the end
            if -math.inf < self._missing_s < MAX_DELAY_S:
                self._needed.add(self._missing_s, now_ns * 1e-9)
            self._seen, self._missing_s = self._line.count, -math.inf
        self._missing_s = max(self._missing_s, needed_s)

    def _slew(self, error_s: float, position: int) -> float:
        if abs(error_s) < NEAR_S:
            return 0.0
        soon = self._held[position : position + 2 * BLOCK]
        limit = QUIET_SLEW if int(np.abs(soon.astype(np.int32)).max(initial=0)) < QUIET else SLEW
        return min(max(error_s / (10 * BLOCK_S), -limit), limit)

    def _between(self, where: np.ndarray) -> np.ndarray:
        """Samples at fractional positions ``where`` (N,) of what is held, interpolated linearly: (N, 2) float64."""
        if len(where) and where[0].is_integer() and where[-1] - where[0] == len(where) - 1:
            return self._held[int(where[0]) : int(where[-1]) + 1].astype(np.float64)
        left = where.astype(np.int64)
        weight = (where - left)[:, None]
        return (1.0 - weight) * self._held[left] + weight * self._held[left + 1]

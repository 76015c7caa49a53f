"""Audio that is passed between threads, and the bus that distributes it."""

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
"""Stereo samples (N, 2) int16, left and right, at `RATE` per second."""

RATE: Final = 48_000
"""Sample rate of all audio in Hz: that of Opus in WebRTC (RFC 7587)."""
CHANNELS: Final = 2
"""Number of audio channels."""

SPEAKER_S: Final = 0.5
"""Seconds after a chunk for which its origin stays the active one; meanwhile a microphone silences the source."""
TOLERANCE_S: Final = 0.03
"""Largest error in seconds of the capture times of continuous audio, which are estimates."""
MAX_GAP_S: Final = 2.0
"""Longest gap in seconds between chunks that is filled with silence; after a longer one a timeline starts anew."""


@dataclass(frozen=True)
class AudioChunk:
    """Some milliseconds of audio: ``samples`` (N, 2) int16 at 48 kHz.

    ``t_capture_ns`` is the capture time of the first sample, on the clock of the camera frames: audio and frames with
    the same capture time belong together.
    """

    t_capture_ns: int
    samples: Samples

    @property
    def end_ns(self) -> int:
        """Capture time of the sample after the last."""
        return self.t_capture_ns + round(len(self.samples) * 1e9 / RATE)


AudioListener = Callable[[AudioChunk], None]
"""Callback for each chunk of an `AudioBus`; it must not block."""


class AudioBus:
    """Passes every audio chunk to all listeners, on the thread that plays it.  Every method is for any thread.

    A browser's microphone takes precedence over the audio of the daemon's own source.

    Attributes:
        muted: replace all audio by silence of the same length.
        delay_s: seconds from the capture of audio until it is sent to viewers; None while none is sent.
        source_error: why the daemon's own source is silent although it has audio; None otherwise.
    """

    def __init__(self) -> None:
        self.muted = False
        self.source_error: str | None = None
        self.delay_s: float | None = None
        self._listeners: tuple[AudioListener, ...] = ()
        self._lock = threading.Lock()
        self._microphone_at = self._source_at = -math.inf

    @property
    def active(self) -> str | None:
        """Origin of the audio that plays now: ``microphone`` or ``source``; None during silence."""
        now = time.monotonic()
        if now - self._microphone_at < SPEAKER_S:
            return "microphone"
        return "source" if now - self._source_at < SPEAKER_S else None

    def status(self) -> dict[str, Any]:
        """JSON object ``audio`` of `/status` (docs/protocols-http.md)."""
        delay = self.delay_s
        delay_ms = round(1e3 * delay, 1) if delay is not None else None
        return {"source": self.active, "muted": self.muted, "delay_ms": delay_ms, "error": self.source_error}

    def subscribe(self, listener: AudioListener) -> None:
        """Call ``listener`` with every chunk from now on."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def unsubscribe(self, listener: AudioListener) -> None:
        """Call ``listener`` no more; unknown listeners are ignored."""
        with self._lock:
            self._listeners = tuple(other for other in self._listeners if other != listener)

    def play_source(self, chunk: AudioChunk) -> None:
        """Play audio of the daemon's own source, unless a microphone is active."""
        now = time.monotonic()
        if now - self._microphone_at >= SPEAKER_S:
            self._source_at = now
            self._play(chunk)

    def report_silence(self, problem: str) -> None:
        """Note why the daemon's own source is silent although it has audio."""
        self.source_error = problem

    def play_microphone(self, chunk: AudioChunk) -> None:
        """Play audio of a browser's microphone."""
        self._microphone_at = time.monotonic()
        self._play(chunk)

    def _play(self, chunk: AudioChunk) -> None:
        if self.muted:
            chunk = AudioChunk(chunk.t_capture_ns, np.zeros_like(chunk.samples))
        for listener in self._listeners:
            listener(chunk)


class AudioTimeline:
    """Joins chunks into continuous samples: gaps become silence, and samples that come twice are dropped.

    Attributes:
        start_ns: capture time of the first sample.
        count: number of samples.
    """

    def __init__(self, follows: bool = False) -> None:
        """With ``follows`` the timeline follows capture times that drift; without, it corrects them in steps."""
        self.start_ns = 0.0
        self.count = 0
        self._follows = follows

    @property
    def end_ns(self) -> float:
        """Capture time of the sample after the last."""
        return self.start_ns + self.count * 1e9 / RATE

    def begin(self, t_ns: float) -> None:
        """Start anew with an empty timeline at capture time ``t_ns``."""
        self.start_ns, self.count = float(t_ns), 0

    def continues(self, chunk: AudioChunk) -> bool:
        """Whether ``chunk`` starts within `MAX_GAP_S` of the end of the timeline."""
        return abs(chunk.t_capture_ns - self.end_ns) <= MAX_GAP_S * 1e9

    def append(self, chunk: AudioChunk, tolerance_s: float = TOLERANCE_S) -> Samples:
        """Append ``chunk``; returns the samples that it adds, including the silence before them."""
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

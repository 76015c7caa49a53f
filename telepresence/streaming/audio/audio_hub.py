"""The sound of the call: held back until its pictures are there, encoded once, and handed to every viewer."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from telepresence.runtime.audio import RATE, Samples, SoundBus, SoundChunk
from telepresence.runtime.policy import one_line
from telepresence.streaming.audio.lipsync import BLOCK, BLOCK_S, DelayLine, Recent

if TYPE_CHECKING:
    import av

log = logging.getLogger("telepresence")

LOOK_S: Final = 0.1
"""So often is it looked up how late the pictures are."""
LISTENER_S: Final = 0.04
"""Browsers need so much longer to let sound be heard than to paint a picture (measured in Chromium on loopback)."""
MARGIN_S: Final = 0.003
"""A chunk may come so much later than usual and still be in time."""
BEHIND_S: Final = 0.1
"""A thread that wakes up later than this leaves blocks out, instead of sending them all at once."""
RETRY_S: Final = 1.0


class OpusEncoder:
    """Opus in packets of 20 ms, stereo; each can make good for the loss of the one before."""

    def __init__(self, bitrate: int) -> None:
        """``bitrate`` in bit/s."""
        from av import CodecContext

        codec = CodecContext.create("libopus", "w")
        codec.sample_rate = RATE
        codec.layout = "stereo"
        codec.format = "s16"
        codec.bit_rate = bitrate
        codec.time_base = Fraction(1, RATE)
        codec.options = {"application": "voip", "frame_duration": "20", "fec": "1", "packet_loss": "5"}
        codec.open()
        self._codec = codec

    def encode(self, samples: Samples, pts: int) -> av.Packet[Any]:
        """``samples`` (`BLOCK`, 2) of which the first plays at ``pts`` (in 1/48000 s)."""
        from av import AudioFrame

        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = RATE
        frame.pts, frame.time_base = pts, Fraction(1, RATE)
        (packet,) = self._codec.encode(frame)
        packet.pts, packet.time_base = pts, Fraction(1, RATE)
        return packet


PacketSink = Callable[["av.Packet[Any]"], None]


class SoundHub:
    """Plays what is said on a `SoundBus`, as late as the pictures are, to all who subscribe.

    The thread ``sound`` runs from `start` to `stop`, and does nothing while nobody listens or nothing can be heard.
    Sinks are called on it and must not block.
    """

    def __init__(self, bus: SoundBus, bitrate: int, latency_ms: Callable[[], float | None]) -> None:
        """``latency_ms`` tells how long a picture takes from its capture until it leaves; None: none leaves."""
        self._bus, self._bitrate, self._latency_ms = bus, bitrate, latency_ms
        self._line = DelayLine()
        self._late = Recent()
        self._sinks: tuple[PacketSink, ...] = ()
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._arrived = threading.Event()  # sound, since it was looked for last
        self._open = True
        self._looked = self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="sound", daemon=True)

    def start(self) -> None:
        self._bus.listen(self._hear)
        self._thread.start()

    def stop(self) -> None:
        """May be called twice, and without a start."""
        self._bus.forget(self._hear)
        self._open = False
        self._wanted.set()
        self._arrived.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    def subscribe(self, sink: PacketSink) -> None:
        """Hand every Opus packet to ``sink`` from now on."""
        with self._lock:
            self._sinks = (*self._sinks, sink)
        self._wanted.set()

    def unsubscribe(self, sink: PacketSink) -> None:
        with self._lock:
            self._sinks = tuple(other for other in self._sinks if other != sink)
            if not self._sinks and self._open:
                self._wanted.clear()

    def _hear(self, chunk: SoundChunk) -> None:
        self._line.put(chunk)
        self._arrived.set()

    def _run(self) -> None:
        encoder: OpusEncoder | None = None
        due, pts = 0.0, -BLOCK
        playing = False
        while self._wanted.wait() and self._open:
            if not playing:  # begin just after a chunk came: so the least is waited for the next
                self._arrived.wait()
                self._arrived.clear()
                due = time.monotonic() + MARGIN_S
            now = time.monotonic()
            if due > now:
                time.sleep(due - now)
            elif now - due > BEHIND_S:
                due += math.ceil((now - due) / BLOCK_S) * BLOCK_S
            try:
                samples = self._line.read(round(due * 1e9), self._delay_s(time.monotonic()))
                self._bus.delay_s = self._line.delay_s
                playing = samples is not None
                if samples is None:
                    continue
                if self._bus.muted:
                    samples = 0 * samples
                encoder = encoder or OpusEncoder(self._bitrate)
                pts = max(pts + BLOCK, round((due - self._began) * RATE))  # a pause is one for viewers, too
                packet = encoder.encode(samples, pts)
                for sink in self._sinks:
                    sink(packet)
                due += BLOCK_S
            except Exception as error:
                encoder = None
                log.error("sound: %s", one_line(error), extra={"event": "stage_failed", "stage": "sound"})
                time.sleep(RETRY_S)

    def _delay_s(self, now: float) -> float:
        """By how much sound has to leave later than it was captured to be heard with its pictures."""
        if now - self._looked >= LOOK_S:
            self._looked = now
            if (latency := self._latency_ms()) is not None:
                self._late.add(1e-3 * latency, now)
        return (self._late.median() or 0.0) - LISTENER_S

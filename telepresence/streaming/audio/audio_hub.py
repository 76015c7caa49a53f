"""Audio thread: delays the audio of the call to match the video, and encodes it once for all viewers."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from telepresence.runtime.audio import RATE, AudioBus, AudioChunk, Samples
from telepresence.runtime.failure_policy import one_line
from telepresence.runtime.ownership import any_thread, enter_role, owned_by
from telepresence.streaming.audio.lipsync import BLOCK, BLOCK_S, DelayLine, RollingWindow

if TYPE_CHECKING:
    import av

log = logging.getLogger("telepresence")

LATENCY_S: Final = 0.1
"""Seconds between two readings of the video latency."""
LISTENER_S: Final = 0.04
"""Seconds by which a browser plays audio later than it paints video (measured in Chromium on loopback)."""
MARGIN_S: Final = 0.003
"""Seconds by which a chunk of audio may arrive later than usual and still be in time."""
BEHIND_S: Final = 0.1
"""Seconds of delay of the audio thread above which it skips blocks, instead of sending all of them at once."""
RETRY_S: Final = 1.0
"""Seconds before the audio encoder is opened again after an error."""


class OpusEncoder:
    """Opus encoder: stereo packets of 20 ms with forward error correction for the packet before."""

    def __init__(self, bitrate: int) -> None:
        """``bitrate``: target in bit/s."""
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
        """Encode ``samples`` (`BLOCK`, 2) to one packet; ``pts`` is the time of the first sample in 1/48000 s."""
        from av import AudioFrame

        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = RATE
        frame.pts, frame.time_base = pts, Fraction(1, RATE)
        (packet,) = self._codec.encode(frame)
        packet.pts, packet.time_base = pts, Fraction(1, RATE)
        return packet


AudioPacketCallback = Callable[["av.Packet[Any]"], None]


@owned_by("audio")
class AudioHub:
    """Encodes the audio of an `AudioBus`, delayed as much as the video, and passes the packets to all subscribers.

    The thread ``audio`` runs from `start` to `stop`; it sleeps while there are no subscribers or there is no audio.
    Callbacks are called on it and must not block.
    """

    def __init__(self, bus: AudioBus, bitrate: int, latency_ms: Callable[[], float | None]) -> None:
        """``bitrate``: target in bit/s.  ``latency_ms`` returns the video latency from capture to encode, or None."""
        self._bus, self._bitrate, self._latency_ms = bus, bitrate, latency_ms
        self._delay_line = DelayLine()
        self._latencies = RollingWindow()
        self._callbacks: tuple[AudioPacketCallback, ...] = ()
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._arrived = threading.Event()  # set when audio arrives
        self._open = True
        self._latency_read = self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="audio", daemon=True)

    @any_thread
    def start(self) -> None:
        """Start the audio thread."""
        self._bus.subscribe(self._on_audio)
        self._thread.start()

    @any_thread
    def stop(self) -> None:
        """End the audio thread; may be called twice, and without a start."""
        self._bus.unsubscribe(self._on_audio)
        self._open = False
        self._wanted.set()
        self._arrived.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    @any_thread
    def subscribe(self, callback: AudioPacketCallback) -> None:
        """Call ``callback`` with every Opus packet from now on."""
        with self._lock:
            self._callbacks = (*self._callbacks, callback)
        self._wanted.set()

    @any_thread
    def unsubscribe(self, callback: AudioPacketCallback) -> None:
        """Stop calling ``callback``."""
        with self._lock:
            self._callbacks = tuple(other for other in self._callbacks if other != callback)
            if not self._callbacks and self._open:
                self._wanted.clear()

    def _on_audio(self, chunk: AudioChunk) -> None:
        self._delay_line.put(chunk)
        self._arrived.set()

    def _run(self) -> None:
        enter_role("audio")
        encoder: OpusEncoder | None = None
        due, pts = 0.0, -BLOCK
        playing = False
        while self._wanted.wait() and self._open:
            if not playing:  # begin just after a chunk has arrived, which makes the wait for each next one shortest
                self._arrived.wait()
                self._arrived.clear()
                due = time.monotonic() + MARGIN_S
            now = time.monotonic()
            if due > now:
                time.sleep(due - now)
            elif now - due > BEHIND_S:
                due += math.ceil((now - due) / BLOCK_S) * BLOCK_S
            try:
                samples = self._delay_line.read(round(due * 1e9), self._delay_s(time.monotonic()))
                self._bus.delay_s = self._delay_line.delay_s
                playing = samples is not None
                if samples is None:
                    continue
                if self._bus.muted:
                    samples = 0 * samples
                encoder = encoder or OpusEncoder(self._bitrate)
                pts = max(pts + BLOCK, round((due - self._began) * RATE))  # a pause remains a pause for viewers
                packet = encoder.encode(samples, pts)
                for callback in self._callbacks:
                    callback(packet)
                due += BLOCK_S
            except Exception as error:
                encoder = None
                log.error("audio: %s", one_line(error), extra={"event": "stage_failed", "stage": "audio"})
                time.sleep(RETRY_S)

    def _delay_s(self, now: float) -> float:
        """Delay in seconds from capture to sending with which audio is heard together with its video."""
        if now - self._latency_read >= LATENCY_S:
            self._latency_read = now
            if (latency := self._latency_ms()) is not None:
                self._latencies.add(1e-3 * latency, now)
        return (self._latencies.median() or 0.0) - LISTENER_S

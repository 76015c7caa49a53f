"""The encode thread: the newest picture goes in, every viewer gets the same packets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.types import Bytes
from telepresence.frames import ShownFrame
from telepresence.policy import POLICIES, Condition, Health, one_line
from telepresence.streaming.encoder import CLOCK_RATE, H264Encoder, to_yuv420p
from telepresence.streaming.settings import StreamSettings
from telepresence.streaming.slot import Departure, PacedSlot
from telepresence.streaming.stats import StreamMeter, StreamStats

if TYPE_CHECKING:
    import av

log = logging.getLogger("telepresence")

ENCODE: Final = POLICIES["encode"]

CARD_GREY = 28  # what viewers see before the first picture: calm, and not black

JOIN_GAP_S = 0.2  # a viewer that joins gets a keyframe at once; a crowd that joins together shares one
LOSS_GAP_S = 1.0  # a viewer that lost packets may ask as often as it likes, and costs the others one a second


@dataclass(frozen=True)
class EncodedPicture:
    """An H.264 access unit for everyone; nobody may change ``packet``."""

    packet: av.Packet[av.VideoStream]
    keyframe: bool


@dataclass(frozen=True)
class RawPicture:
    """``yuv`` (3/2 size, size) uint8, planar yuv420p, for peers with an encoder of their own; ``pts`` in 1/90000 s."""

    yuv: Bytes
    pts: int


PacketSink = Callable[[EncodedPicture], None]
PictureSink = Callable[[RawPicture], None]


class EncoderHub:
    """Runs the stream at its declared rate from the newest picture shown, and encodes it once for all.

    Sinks are called on the encode thread and must not block.  Nothing is encoded while nobody listens.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        card = np.full((settings.size, settings.size, 3), CARD_GREY, dtype=np.uint8)
        self._slot = PacedSlot(settings.fps, ShownFrame(0, time.monotonic_ns(), card))
        self._packet_sinks: list[PacketSink] = []
        self._picture_sinks: list[PictureSink] = []
        self._keyframe_gap: float | None = None  # None: nobody asked for a keyframe
        self._meter = StreamMeter()
        self._began = time.monotonic()  # of the stream's time
        self._last_pts = -1
        self._last_keyframe = -1e9
        self._heartbeat = self._began
        self._failures = self._restarts = 0
        self._error: str | None = None
        self._thread = self._new_thread()

    def start(self) -> None:
        self._heartbeat = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        self._slot.close()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def watched(self) -> bool:
        """Whether pictures go to anybody."""
        return bool(self._packet_sinks or self._picture_sinks)

    def watch(self, now: float) -> None:
        """Let another thread, with an encoder of its own, take the place of one that hangs; call it now and then."""
        if self._thread.ident is None or self._slot.closed or now - self._heartbeat <= ENCODE.silent_s:
            return
        self._fails(f"the encoder has made no picture for {now - self._heartbeat:.0f} s")
        self._heartbeat = now
        self._thread = self._new_thread()
        self._thread.start()

    def health(self, now: float) -> Health:
        """How the encoder is."""
        condition = Condition.RESTARTING if self._failures else Condition.RUNNING
        if self._thread.ident is not None and not self.alive:
            condition = Condition.STOPPED
        return Health(condition, max(0.0, now - self._heartbeat), self._restarts, self._error)

    def show(self, frame: ShownFrame) -> None:
        """Replace the picture that leaves next; any thread, never waits for the encoder."""
        self._slot.put(frame)

    def subscribe_packets(self, sink: PacketSink) -> None:
        """Send every H.264 packet to ``sink`` from now on, and a keyframe as soon as may be."""
        with self._lock:
            self._packet_sinks.append(sink)
        self.request_keyframe(JOIN_GAP_S)

    def subscribe_pictures(self, sink: PictureSink) -> None:
        with self._lock:
            self._picture_sinks.append(sink)

    def unsubscribe(self, sink: PacketSink | PictureSink) -> None:
        with self._lock:
            self._packet_sinks = [s for s in self._packet_sinks if s != sink]
            self._picture_sinks = [s for s in self._picture_sinks if s != sink]

    def request_keyframe(self, gap_s: float = LOSS_GAP_S) -> None:
        """Make a coming picture a keyframe, at least ``gap_s`` seconds after the last one; requests merge."""
        with self._lock:
            self._keyframe_gap = gap_s if self._keyframe_gap is None else min(gap_s, self._keyframe_gap)

    def stats(self) -> StreamStats:
        return self._meter.read(time.monotonic())

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="encode", daemon=True)

    def _run(self) -> None:
        encoder: _Encoder | None = None
        while (departure := self._slot.next()) is not None:
            try:
                encoder = encoder or _Encoder(self._settings)
                self._send(departure, encoder)
            except Exception as error:
                if not self._mine():
                    return
                encoder = None
                self._fails(one_line(error))
                time.sleep(ENCODE.pauses[min(self._failures, len(ENCODE.pauses)) - 1])
            if not self._mine():
                return  # another thread has taken over while this one hung
            self._heartbeat = time.monotonic()

    def _mine(self) -> bool:
        return self._thread is threading.current_thread()

    def _fails(self, text: str) -> None:
        self._failures += 1
        self._restarts += 1
        self._error = text
        self.request_keyframe(0.0)
        fields = {"error": text, "failures": self._failures}
        log.error(
            "the encoder is made anew: %s", text, extra={"event": "stage_failed", "stage": "encode", "fields": fields}
        )

    def _send(self, departure: Departure, encoder: _Encoder) -> None:
        """One picture to everybody."""
        begin = departure.at
        with self._lock:
            packet_sinks, picture_sinks = tuple(self._packet_sinks), tuple(self._picture_sinks)
            gap = self._keyframe_gap
            keyframe = bool(packet_sinks) and gap is not None and begin - self._last_keyframe >= gap
            if keyframe:
                self._keyframe_gap = None
        self._meter.issued(begin)
        if departure.fresh:
            encoder.forget()
        if not packet_sinks and not picture_sinks:
            return
        pts = self._last_pts = max(self._last_pts + 1, int((begin - self._began) * CLOCK_RATE))
        yuv = encoder.converted(departure.picture)
        size = 0
        if picture_sinks:
            raw = RawPicture(np.asarray(yuv.to_ndarray(), dtype=np.uint8), pts)
            for picture_sink in picture_sinks:
                picture_sink(raw)
        if packet_sinks:
            packet = encoder.encode(yuv, pts, keyframe)
            if not self._mine():
                return
            size = packet.size
            if packet.is_keyframe:
                keyframe, self._last_keyframe = True, begin
            encoded = EncodedPicture(packet, packet.is_keyframe)
            for packet_sink in packet_sinks:
                packet_sink(encoded)
        end = time.monotonic()
        latency = (time.monotonic_ns() - departure.picture.t_capture_ns) * 1e-9 if departure.fresh else None
        self._meter.encoded(end, end - begin, latency, size, keyframe)
        self._failures = 0


class _Encoder:
    """The H.264 encoder of one thread, made when it is first needed, and the newest picture as it takes it."""

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._codec: H264Encoder | None = None
        self._yuv: av.VideoFrame | None = None  # kept for repeats

    def forget(self) -> None:
        self._yuv = None

    def converted(self, picture: ShownFrame) -> av.VideoFrame:
        if self._yuv is None:
            self._yuv = to_yuv420p(picture.rgb, self._settings.size)
        return self._yuv

    def encode(self, yuv: av.VideoFrame, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
        s = self._settings
        if self._codec is None:
            self._codec = H264Encoder(s.size, s.fps, 1000 * s.bitrate, s.preset)
        return self._codec.encode(yuv, pts, keyframe)

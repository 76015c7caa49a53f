"""The encode thread: the newest picture goes in, every viewer gets the same packets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from insta_runtime.types import Bytes
from telepresence.frames import ShownFrame
from telepresence.streaming.settings import StreamSettings
from telepresence.streaming.slot import PacedSlot
from telepresence.streaming.stats import StreamMeter, StreamStats

if TYPE_CHECKING:
    import av

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
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._slot.close()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

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

    def _run(self) -> None:
        from telepresence.streaming.encoder import CLOCK_RATE, H264Encoder, to_yuv420p

        s = self._settings
        encoder: H264Encoder | None = None
        start = time.monotonic()
        last_keyframe = -1e9
        last_pts = -1
        yuv: av.VideoFrame | None = None  # of the newest picture, kept for its repeats
        while (departure := self._slot.next()) is not None:
            picture, fresh, begin = departure.picture, departure.fresh, departure.at
            with self._lock:
                packet_sinks, picture_sinks = tuple(self._packet_sinks), tuple(self._picture_sinks)
                gap = self._keyframe_gap
                keyframe = bool(packet_sinks) and gap is not None and begin - last_keyframe >= gap
                if keyframe:
                    self._keyframe_gap = None
            self._meter.issued(begin)
            yuv = None if fresh else yuv
            if not packet_sinks and not picture_sinks:
                continue
            if yuv is None:
                yuv = to_yuv420p(picture.rgb, s.size)
            pts = last_pts = max(last_pts + 1, int((begin - start) * CLOCK_RATE))
            size = 0
            if picture_sinks:
                raw = RawPicture(np.asarray(yuv.to_ndarray(), dtype=np.uint8), pts)
                for picture_sink in picture_sinks:
                    picture_sink(raw)
            if packet_sinks:
                encoder = encoder or H264Encoder(s.size, s.fps, 1000 * s.bitrate, s.preset)
                packet = encoder.encode(yuv, pts, keyframe)
                size = packet.size
                if packet.is_keyframe:
                    keyframe, last_keyframe = True, begin
                encoded = EncodedPicture(packet, packet.is_keyframe)
                for packet_sink in packet_sinks:
                    packet_sink(encoded)
            end = time.monotonic()
            latency = (time.monotonic_ns() - picture.t_capture_ns) * 1e-9 if fresh else None
            self._meter.encoded(end, end - begin, latency, size, keyframe)

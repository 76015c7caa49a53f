"""The encode thread: the newest picture goes in, all viewers of a line get the same packets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes
from telepresence.runtime.frames import ShownFrame
from telepresence.runtime.policy import POLICIES, Condition, Health, one_line
from telepresence.streaming.settings import StreamSettings
from telepresence.streaming.video.encoder import (
    CLOCK_RATE,
    Codec,
    Converter,
    Encoder,
    H264Encoder,
    Vp8Encoder,
    nvenc_trouble,
)
from telepresence.streaming.video.paced_slot import Departure, PacedSlot
from telepresence.streaming.video.stats import StreamMeter, StreamStats
from telepresence.streaming.video.tiers import Tier, ladder

if TYPE_CHECKING:
    import av

log = logging.getLogger("telepresence")

ENCODE: Final = POLICIES["encode"]

CARD_GREY = 28  # what viewers see before the first picture: calm, and not black

JOIN_GAP_S = 0.2  # a viewer that joins gets a keyframe at once; a crowd that joins together shares one
LOSS_GAP_S = 1.0  # a viewer that lost packets may ask as often as it likes, and costs the others one a second


@dataclass(frozen=True)
class Line:
    """One encode: every viewer that has this codec and this tier gets its packets."""

    codec: Codec
    tier: Tier


@dataclass(frozen=True)
class EncodedPicture:
    """An H.264 access unit or a VP8 frame for everyone; nobody may change ``packet``."""

    packet: av.Packet[av.VideoStream]
    keyframe: bool


@dataclass(frozen=True)
class RawPicture:
    """``yuv`` (3/2 size, size) uint8, planar yuv420p, for peers with an encoder of their own; ``pts`` in 1/90000 s."""

    yuv: Bytes
    pts: int


PacketSink = Callable[[EncodedPicture], None]
PictureSink = Callable[[RawPicture], None]


@dataclass
class _Running:
    """A line that somebody listens to.  The hub's lock guards it; only the encode thread writes the last two."""

    rate: int  # bit/s
    sinks: tuple[PacketSink, ...] = ()
    keyframe_gap: float | None = 0.0  # None: nobody asked for a keyframe
    last_keyframe: float = -1e9
    credit: float = field(default=1.0)  # of pictures: one leaves for each whole one


class EncoderHub:
    """Runs the stream at its declared rate from the newest picture shown, and encodes it once a line.

    Sinks are called on the encode thread and must not block.  A line is encoded while somebody listens to it.
    """

    def __init__(self, settings: StreamSettings) -> None:
        """Raises UserError when the settings ask for NVENC and there is none that works."""
        if settings.encoder == "nvenc" and (trouble := nvenc_trouble()) is not None:
            raise UserError(f"NVENC cannot encode here ({trouble}); use --set stream.encoder=auto")
        self._settings = settings
        self.tiers = ladder(settings.size, settings.fps, 1000 * settings.bitrate)
        self._lock = threading.Lock()
        card = np.full((settings.size, settings.size, 3), CARD_GREY, dtype=np.uint8)
        self._slot = PacedSlot(settings.fps, ShownFrame(0, time.monotonic_ns(), card))
        self._lines: dict[Line, _Running] = {}
        self._picture_sinks: list[PictureSink] = []
        self._nvenc = settings.encoder != "x264" and nvenc_trouble() is None  # until it fails
        self._meter = StreamMeter()
        self._began = time.monotonic()  # of the stream's time
        self._last_pts = -1
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
        return bool(self._lines or self._picture_sinks)

    def watch(self, now: float) -> None:
        """Let another thread, with encoders of its own, take the place of one that hangs; call it now and then."""
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

    def subscribe(self, line: Line, sink: PacketSink) -> None:
        """Send every packet of ``line`` to ``sink`` from now on, and a keyframe as soon as may be."""
        with self._lock:
            running = self._lines.setdefault(line, _Running(line.tier.ceiling))
            running.sinks = (*running.sinks, sink)
        self.request_keyframe(line, JOIN_GAP_S)

    def unsubscribe(self, line: Line, sink: PacketSink) -> None:
        with self._lock:
            if (running := self._lines.get(line)) is not None:
                running.sinks = tuple(other for other in running.sinks if other != sink)
                if not running.sinks:
                    del self._lines[line]

    def set_rate(self, line: Line, bitrate: float) -> None:
        """Aim at ``bitrate`` bit/s, at most at the tier's ceiling, from the next picture on."""
        with self._lock:
            if (running := self._lines.get(line)) is not None:
                running.rate = round(min(bitrate, line.tier.ceiling))

    def request_keyframe(self, line: Line, gap_s: float = LOSS_GAP_S) -> None:
        """Make a coming picture a keyframe, at least ``gap_s`` seconds after the last one; requests merge."""
        with self._lock:
            if (running := self._lines.get(line)) is not None:
                gap = running.keyframe_gap
                running.keyframe_gap = gap_s if gap is None else min(gap_s, gap)

    def subscribe_pictures(self, sink: PictureSink) -> None:
        """Send pictures to ``sink`` that nobody has encoded."""
        with self._lock:
            self._picture_sinks.append(sink)

    def unsubscribe_pictures(self, sink: PictureSink) -> None:
        with self._lock:
            self._picture_sinks = [other for other in self._picture_sinks if other != sink]

    def stats(self) -> StreamStats:
        """Figures of the last two seconds; `StreamStats.lines` is left to who knows the viewers."""
        return replace(self._meter.read(time.monotonic()), encoder="nvenc" if self._nvenc else "x264")

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="encode", daemon=True)

    def _run(self) -> None:
        bench: _Bench | None = None
        while (departure := self._slot.next()) is not None:
            try:
                bench = bench or _Bench(self._settings, self._nvenc)
                self._send(departure, bench)
            except Exception as error:
                if not self._mine():
                    return
                bench = None
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
        self._nvenc = False  # whatever it was: the next encoder is the one that needs no driver
        with self._lock:
            for running in self._lines.values():
                running.keyframe_gap = 0.0
        fields = {"error": text, "failures": self._failures}
        log.error(
            "the encoder is made anew: %s", text, extra={"event": "stage_failed", "stage": "encode", "fields": fields}
        )

    def _send(self, departure: Departure, bench: _Bench) -> None:
        """One picture to everybody."""
        self._meter.issued(departure.at)
        bench.take(departure.picture, departure.fresh)
        with self._lock:
            lines, picture_sinks = tuple(self._lines.items()), tuple(self._picture_sinks)
        bench.keep([line for line, _ in lines])
        if not lines and not picture_sinks:
            return
        pts = self._last_pts = max(self._last_pts + 1, int((departure.at - self._began) * CLOCK_RATE))
        for line, running in sorted(lines, key=lambda item: -item[0].tier.need):
            running.credit += line.tier.fps / self._settings.fps
            if running.credit >= 1.0 - 1e-6:
                running.credit -= 1.0
                self._encode(line, running, departure, bench, pts)
                if not self._mine():
                    return
        if picture_sinks:
            begin = time.monotonic()
            raw = RawPicture(np.asarray(bench.frame(self._settings.size).to_ndarray(), dtype=np.uint8), pts)
            for sink in picture_sinks:
                sink(raw)
            self._meter.encoded(time.monotonic(), time.monotonic() - begin, _latency(departure), 0, keyframe=False)
        self._failures = 0

    def _encode(self, line: Line, running: _Running, departure: Departure, bench: _Bench, pts: int) -> None:
        """One packet to all who listen to ``line``."""
        begin = time.monotonic()
        with self._lock:
            sinks, rate, gap = running.sinks, running.rate, running.keyframe_gap
            wanted = gap is not None and departure.at - running.last_keyframe >= gap
            if wanted:
                running.keyframe_gap = None
        packet = bench.encode(line, rate, pts, wanted)
        if not self._mine():
            return
        encoded = EncodedPicture(packet, packet.is_keyframe)
        if encoded.keyframe:
            running.last_keyframe = departure.at
        for sink in sinks:
            sink(encoded)
        end = time.monotonic()
        self._meter.encoded(end, end - begin, _latency(departure), packet.size, encoded.keyframe)


def _latency(departure: Departure) -> float | None:
    """Seconds since the capture of a picture that is new."""
    return (time.monotonic_ns() - departure.picture.t_capture_ns) * 1e-9 if departure.fresh else None


class _Bench:
    """The encoders of one thread, each made when it is first needed, and the newest picture as they take it."""

    def __init__(self, settings: StreamSettings, nvenc: bool) -> None:
        self._settings = settings
        self._nvenc = nvenc
        self._converter = Converter()
        self._encoders: dict[Line, Encoder] = {}
        self._picture: ShownFrame | None = None
        self._frames: dict[int, av.VideoFrame] = {}  # of that picture by side, kept for repeats

    def take(self, picture: ShownFrame, fresh: bool) -> None:
        if fresh or self._picture is None:
            self._picture = picture
            self._frames.clear()

    def keep(self, lines: list[Line]) -> None:
        """Forget the encoders of all other lines."""
        for line in [line for line in self._encoders if line not in lines]:
            del self._encoders[line]

    def frame(self, size: int) -> av.VideoFrame:
        """The picture as yuv420p of side ``size``."""
        assert self._picture is not None
        if (frame := self._frames.get(size)) is None:
            if size == self._settings.size:
                frame = self._converter.convert(self._picture.rgb, size)
            else:
                frame = self._converter.shrink(self.frame(self._settings.size), size)
            self._frames[size] = frame
        return frame

    def encode(self, line: Line, rate: int, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
        frame = self.frame(line.tier.size)
        if (encoder := self._encoders.get(line)) is None:
            encoder = self._encoders[line] = self._open(line)
        encoder.set_rate(rate)
        return encoder.encode(frame, pts, keyframe)

    def _open(self, line: Line) -> Encoder:
        tier = line.tier
        if line.codec is Codec.VP8:
            return Vp8Encoder(tier.size, tier.fps, tier.ceiling)
        return H264Encoder(tier.size, tier.fps, tier.ceiling, self._settings.preset, self._nvenc)

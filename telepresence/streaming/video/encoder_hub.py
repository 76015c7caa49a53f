"""Encode thread: takes the newest frame at a constant rate and encodes it once for all viewers of each rendition."""

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
from telepresence.runtime.failure_policy import POLICIES, Condition, Health, one_line
from telepresence.runtime.frames import OutputFrame
from telepresence.runtime.ownership import any_thread, enter_role, owned_by
from telepresence.streaming.video.encoder import (
    CLOCK_RATE,
    Codec,
    Converter,
    Encoder,
    H264Encoder,
    Vp8Encoder,
    nvenc_error,
)
from telepresence.streaming.video.paced_slot import PacedFrame, PacedSlot
from telepresence.streaming.video.settings import VideoSettings
from telepresence.streaming.video.stats import StreamMeter, StreamStats
from telepresence.streaming.video.tiers import Tier, tier_ladder

if TYPE_CHECKING:
    import av

log = logging.getLogger("telepresence")

ENCODE: Final = POLICIES["encode"]
"""Restart policy of the encode thread."""

BLANK_GREY: Final = 28
"""Grey level (of 255) of the frames that are streamed before the first rendered frame."""

JOIN_GAP_S: Final = 0.2
"""Minimum number of seconds between keyframes for viewers that join, so that those who join together share one."""
LOSS_GAP_S: Final = 1.0
"""Minimum number of seconds between keyframes for viewers that lost packets, as each keyframe costs all viewers."""


@dataclass(frozen=True)
class Rendition:
    """A codec at a tier: all viewers of a rendition receive the same packets."""

    codec: Codec
    tier: Tier


@dataclass(frozen=True)
class EncodedFrame:
    """An H.264 access unit or a VP8 frame, shared by all viewers: ``packet`` must not be changed."""

    packet: av.Packet[av.VideoStream]
    keyframe: bool


@dataclass(frozen=True)
class RawFrame:
    """A frame for peers with an encoder of their own.

    ``yuv``: (3/2 size, size) uint8, planar yuv420p.  ``pts``: time stamp in 1/90000 s.
    """

    yuv: Bytes
    pts: int


EncodedFrameCallback = Callable[[EncodedFrame], None]
RawFrameCallback = Callable[[RawFrame], None]


@dataclass
class _RenditionState:
    """State of a rendition with subscribers, guarded by the hub's lock; only the encode thread writes the last two."""

    rate: int  # bit/s
    callbacks: tuple[EncodedFrameCallback, ...] = ()
    keyframe_gap: float | None = 0.0  # s, of the strictest request for a keyframe; None: there is no request
    last_keyframe: float = -1e9
    credit: float = field(default=1.0)  # in frames: one is sent for each whole one


@owned_by("encode")
class EncoderHub:
    """Encodes the newest frame at the declared frame rate, once for each rendition that has subscribers.

    Callbacks are called on the encode thread and must not block.

    Attributes:
        tiers: all tiers, the best one first.
    """

    def __init__(self, settings: VideoSettings) -> None:
        """Raises UserError if the settings require NVENC and it does not work."""
        if settings.encoder == "nvenc" and (error := nvenc_error()) is not None:
            raise UserError(f"NVENC does not work on this machine ({error}); use --set stream.encoder=auto")
        self._settings = settings
        self.tiers = tier_ladder(settings.size, settings.fps, 1000 * settings.bitrate)
        self._lock = threading.Lock()
        blank = np.full((settings.size, settings.size, 3), BLANK_GREY, dtype=np.uint8)
        self._slot = PacedSlot(settings.fps, OutputFrame(0, time.monotonic_ns(), blank))
        self._renditions: dict[Rendition, _RenditionState] = {}
        self._raw_callbacks: list[RawFrameCallback] = []
        self._nvenc = settings.encoder != "x264" and nvenc_error() is None  # until it fails
        self._meter = StreamMeter()
        self._began = time.monotonic()  # zero of the stream's time stamps
        self._last_pts = -1
        self._heartbeat = self._began
        self._failures = self._restarts = 0
        self._error: str | None = None
        self._thread = self._new_thread()

    @any_thread
    def start(self) -> None:
        """Start the encode thread."""
        self._heartbeat = time.monotonic()
        self._thread.start()

    @any_thread
    def stop(self) -> None:
        """End the encode thread; may be called twice, and without a start."""
        self._slot.close()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    @property
    @any_thread
    def alive(self) -> bool:
        """Whether the encode thread runs."""
        return self._thread.is_alive()

    @property
    @any_thread
    def watched(self) -> bool:
        """Whether there is any subscriber."""
        return bool(self._renditions or self._raw_callbacks)

    @any_thread
    def supervise(self, now: float) -> None:
        """Replace a thread that hangs by a new one with new encoders.  ``now``: monotonic seconds."""
        if self._thread.ident is None or self._slot.closed or now - self._heartbeat <= ENCODE.silent_s:
            return
        self._on_failure(f"no frame was encoded for {now - self._heartbeat:.0f} s")
        self._heartbeat = now
        self._thread = self._new_thread()
        self._thread.start()

    @any_thread
    def health(self, now: float) -> Health:
        """Health of the stage ``encode``.  ``now``: monotonic seconds."""
        condition = Condition.RESTARTING if self._failures else Condition.RUNNING
        if self._thread.ident is not None and not self.alive:
            condition = Condition.STOPPED
        return Health(condition, max(0.0, now - self._heartbeat), self._restarts, self._error)

    @any_thread
    def push_frame(self, frame: OutputFrame) -> None:
        """Replace the frame that is encoded next; any thread, never waits for the encoder."""
        self._slot.put(frame)

    @any_thread
    def subscribe(self, rendition: Rendition, callback: EncodedFrameCallback) -> None:
        """Call ``callback`` with every packet of ``rendition`` from now on, and request a keyframe."""
        with self._lock:
            state = self._renditions.setdefault(rendition, _RenditionState(rendition.tier.ceiling))
            state.callbacks = (*state.callbacks, callback)
        self.request_keyframe(rendition, JOIN_GAP_S)

    @any_thread
    def unsubscribe(self, rendition: Rendition, callback: EncodedFrameCallback) -> None:
        """Stop calling ``callback``; the last one of a rendition ends its encode."""
        with self._lock:
            if (state := self._renditions.get(rendition)) is not None:
                state.callbacks = tuple(other for other in state.callbacks if other != callback)
                if not state.callbacks:
                    del self._renditions[rendition]

    @any_thread
    def set_rate(self, rendition: Rendition, bitrate: float) -> None:
        """Set the target of ``rendition`` to ``bitrate`` bit/s, at most the tier's ceiling, from the next frame on."""
        with self._lock:
            if (state := self._renditions.get(rendition)) is not None:
                state.rate = round(min(bitrate, rendition.tier.ceiling))

    @any_thread
    def request_keyframe(self, rendition: Rendition, gap_s: float = LOSS_GAP_S) -> None:
        """Encode the next frame that comes ``gap_s`` seconds after the last keyframe as a keyframe; requests merge."""
        with self._lock:
            if (state := self._renditions.get(rendition)) is not None:
                gap = state.keyframe_gap
                state.keyframe_gap = gap_s if gap is None else min(gap_s, gap)

    @any_thread
    def subscribe_raw(self, callback: RawFrameCallback) -> None:
        """Call ``callback`` with every frame, not encoded, from now on."""
        with self._lock:
            self._raw_callbacks.append(callback)

    @any_thread
    def unsubscribe_raw(self, callback: RawFrameCallback) -> None:
        """Stop calling ``callback`` with frames."""
        with self._lock:
            self._raw_callbacks = [other for other in self._raw_callbacks if other != callback]

    @any_thread
    def stats(self) -> StreamStats:
        """Statistics of the last two seconds, without `StreamStats.renditions`, which the `Audience` knows."""
        return replace(self._meter.read(time.monotonic()), encoder="nvenc" if self._nvenc else "x264")

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="encode", daemon=True)

    def _run(self) -> None:
        enter_role("encode")
        encoders: _Encoders | None = None
        while (paced := self._slot.next()) is not None:
            try:
                encoders = encoders or _Encoders(self._settings, self._nvenc)
                self._encode_frame(paced, encoders)
            except Exception as error:
                if not self._is_current():
                    return
                encoders = None
                self._on_failure(one_line(error))
                time.sleep(ENCODE.pauses[min(self._failures, len(ENCODE.pauses)) - 1])
            if not self._is_current():
                return
            self._heartbeat = time.monotonic()

    def _is_current(self) -> bool:
        """Whether the calling thread is the encode thread; a thread that hung for too long was replaced."""
        return self._thread is threading.current_thread()

    def _on_failure(self, text: str) -> None:
        self._failures += 1
        self._restarts += 1
        self._error = text
        self._nvenc = False  # after any failure, the encoder that needs no driver is used
        with self._lock:
            for state in self._renditions.values():
                state.keyframe_gap = 0.0
        fields = {"error": text, "failures": self._failures}
        log.error(
            "the encoder is restarted: %s", text, extra={"event": "stage_failed", "stage": "encode", "fields": fields}
        )

    def _encode_frame(self, paced: PacedFrame, encoders: _Encoders) -> None:
        """Encode one frame for all renditions, and pass it to all subscribers."""
        self._meter.count_sent(paced.at)
        encoders.set_frame(paced.frame, paced.fresh)
        with self._lock:
            renditions, raw_callbacks = tuple(self._renditions.items()), tuple(self._raw_callbacks)
        encoders.close_unused([rendition for rendition, _ in renditions])
        if not renditions and not raw_callbacks:
            return
        pts = self._last_pts = max(self._last_pts + 1, int((paced.at - self._began) * CLOCK_RATE))
        for rendition, state in sorted(renditions, key=lambda item: -item[0].tier.need):
            state.credit += rendition.tier.fps / self._settings.fps
            if state.credit >= 1.0 - 1e-6:
                state.credit -= 1.0
                self._encode_rendition(rendition, state, paced, encoders, pts)
                if not self._is_current():
                    return
        if raw_callbacks:
            begin = time.monotonic()
            raw = RawFrame(np.asarray(encoders.frame(self._settings.size).to_ndarray(), dtype=np.uint8), pts)
            for callback in raw_callbacks:
                callback(raw)
            end = time.monotonic()
            self._meter.count_encoded(end, end - begin, _latency(paced), 0, keyframe=False)
        self._failures = 0

    def _encode_rendition(
        self, rendition: Rendition, state: _RenditionState, paced: PacedFrame, encoders: _Encoders, pts: int
    ) -> None:
        """Encode one frame for ``rendition``, and pass the packet to its subscribers."""
        begin = time.monotonic()
        with self._lock:
            callbacks, rate, gap = state.callbacks, state.rate, state.keyframe_gap
            keyframe = gap is not None and paced.at - state.last_keyframe >= gap
            if keyframe:
                state.keyframe_gap = None
        packet = encoders.encode(rendition, rate, pts, keyframe)
        if not self._is_current():
            return
        encoded = EncodedFrame(packet, packet.is_keyframe)
        if encoded.keyframe:
            state.last_keyframe = paced.at
        for callback in callbacks:
            callback(encoded)
        end = time.monotonic()
        self._meter.count_encoded(end, end - begin, _latency(paced), packet.size, encoded.keyframe)


def _latency(paced: PacedFrame) -> float | None:
    """Seconds since the capture of a new frame; None for a repeated one."""
    return (time.monotonic_ns() - paced.frame.t_capture_ns) * 1e-9 if paced.fresh else None


class _Encoders:
    """Encoders of the encode thread, each opened at its first use, and the newest frame converted for them."""

    def __init__(self, settings: VideoSettings, nvenc: bool) -> None:
        self._settings = settings
        self._nvenc = nvenc
        self._converter = Converter()
        self._encoders: dict[Rendition, Encoder] = {}
        self._newest: OutputFrame | None = None
        self._frames: dict[int, av.VideoFrame] = {}  # the newest frame by its side, kept for repeats

    def set_frame(self, frame: OutputFrame, fresh: bool) -> None:
        """Use ``frame`` from now on; one that is not ``fresh`` has been converted before."""
        if fresh or self._newest is None:
            self._newest = frame
            self._frames.clear()

    def close_unused(self, used: list[Rendition]) -> None:
        """Close the encoders of all renditions but those in ``used``."""
        for rendition in [rendition for rendition in self._encoders if rendition not in used]:
            del self._encoders[rendition]

    def frame(self, size: int) -> av.VideoFrame:
        """The newest frame as yuv420p with a side of ``size`` pixels."""
        assert self._newest is not None
        if (frame := self._frames.get(size)) is None:
            if size == self._settings.size:
                frame = self._converter.convert(self._newest.rgb, size)
            else:
                frame = self._converter.shrink(self.frame(self._settings.size), size)
            self._frames[size] = frame
        return frame

    def encode(self, rendition: Rendition, rate: int, pts: int, keyframe: bool) -> av.Packet[av.VideoStream]:
        """Encode the newest frame for ``rendition`` at ``rate`` bit/s."""
        frame = self.frame(rendition.tier.size)
        if (encoder := self._encoders.get(rendition)) is None:
            encoder = self._encoders[rendition] = self._open(rendition)
        encoder.set_rate(rate)
        return encoder.encode(frame, pts, keyframe)

    def _open(self, rendition: Rendition) -> Encoder:
        tier = rendition.tier
        if rendition.codec is Codec.VP8:
            return Vp8Encoder(tier.size, tier.fps, tier.ceiling)
        return H264Encoder(tier.size, tier.fps, tier.ceiling, self._settings.preset, self._nvenc)

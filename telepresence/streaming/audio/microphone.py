"""Decoder for a browser's microphone: Opus packets to audio with estimated capture times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from aiortc.mediastreams import MediaStreamError

from telepresence.runtime.audio import CHANNELS, RATE, AudioChunk

if TYPE_CHECKING:
    import av
    from aiortc import MediaStreamTrack

REORDER: Final = 2
"""Number of later packets after which a missing audio packet counts as lost."""
MAX_SKIP: Final = 1000
"""Jump of the sequence number above which an audio packet belongs to a new stream."""
BUCKET_S: Final = 0.5
"""Length in seconds of the intervals in which the clock offset of the sender is minimised."""
BUCKETS: Final = 10
"""Number of intervals over which the clock offset of the sender is minimised."""
PREFETCH_S: Final = 0.08
"""Seconds by which aiortc's own jitter buffer delays audio (four packets), where the packets are not read directly."""


class SenderClock:
    """Estimates when a packet was sent, in monotonic time, from its RTP time stamp.

    The fastest packet of the last seconds is assumed to have arrived without delay, and the additional delay of others
    to be jitter.  The clocks of sender and receiver may drift apart.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._stamp = 0  # unwrapped; RTP time stamps wrap at 2^32
        self._offsets: deque[tuple[float, float]] = deque(maxlen=BUCKETS)  # (begin, minimum) of each interval

    def send_time(self, timestamp: int, now: float) -> float:
        """Monotonic seconds at which a packet was sent that has this RTP time stamp and arrives at ``now``."""
        ahead = (timestamp - (self._last if self._last is not None else timestamp)) & 0xFFFFFFFF
        self._stamp += ahead - (1 << 32) * (ahead >= 1 << 31)
        self._last = timestamp
        seconds = self._stamp / RATE
        offset = now - seconds
        if self._offsets and abs(offset - self._offsets[-1][1]) > 1.0:
            self._offsets.clear()  # a new stream, or a clock that was set
        if not self._offsets or now - self._offsets[-1][0] >= BUCKET_S:
            self._offsets.append((now, offset))
        elif offset < self._offsets[-1][1]:
            self._offsets[-1] = (self._offsets[-1][0], offset)
        return seconds + min(least for _, least in self._offsets)


class MicrophoneDecoder:
    """Decodes one incoming Opus stream and passes each `AudioChunk` to a callback as soon as it has arrived.

    It has no jitter buffer, as the audio is delayed later anyway, to match the video.
    """

    def __init__(self, on_audio: Callable[[AudioChunk], None]) -> None:
        self._on_audio = on_audio
        self._clock = SenderClock()
        self._waiting: dict[int, tuple[bytes, float]] = {}  # by sequence number: payload and send time
        self._next: int | None = None
        self._decoder: av.AudioCodecContext | None = None

    def push_packet(self, sequence: int, timestamp: int, payload: bytes, arrived: float | None = None) -> None:
        """Add an RTP packet of the stream, in any order; ``arrived``: monotonic seconds, None for now."""
        if not payload:
            return
        sent = self._clock.send_time(timestamp, time.monotonic() if arrived is None else arrived)
        ahead = (sequence - (self._next if self._next is not None else sequence)) & 0xFFFF
        if ahead > MAX_SKIP:
            if ahead >= 0x10000 - MAX_SKIP:
                return  # arrived too late
            self._waiting.clear()
            self._next = None
        if self._next is None:
            self._next = sequence
        self._waiting[sequence] = payload, sent
        while self._waiting:
            if self._next not in self._waiting:
                if len(self._waiting) <= REORDER:
                    break
                start = self._next
                self._next = min(self._waiting, key=lambda number: (number - start) & 0xFFFF)
            self._decode(*self._waiting.pop(self._next))
            self._next = (self._next + 1) & 0xFFFF

    async def drain(self, track: MediaStreamTrack) -> None:
        """Pass on audio that aiortc decodes, until ``track`` ends: where packets cannot be read directly."""
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                self._emit(frame, self._clock.send_time(frame.pts or 0, time.monotonic() - PREFETCH_S))

    def _decode(self, payload: bytes, sent: float) -> None:
        import av

        if self._decoder is None:
            self._decoder = av.AudioCodecContext.create("libopus", "r")
            self._decoder.format, self._decoder.layout, self._decoder.sample_rate = "s16", "stereo", RATE
        try:
            for frame in self._decoder.decode(av.Packet(payload)):
                self._emit(frame, sent)
        except av.FFmpegError:
            return  # not valid Opus: a gap of 20 ms

    def _emit(self, frame: Any, sent: float) -> None:
        samples = np.asarray(frame.to_ndarray(), dtype=np.int16).reshape(-1, CHANNELS)
        # A packet is sent when its last sample has been captured.
        self._on_audio(AudioChunk(round((sent - len(samples) / RATE) * 1e9), samples))

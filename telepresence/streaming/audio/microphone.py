"""A browser's microphone: Opus packets become sound with the time at which it was captured."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from aiortc.mediastreams import MediaStreamError

from telepresence.runtime.audio import CHANNELS, RATE, SoundChunk

if TYPE_CHECKING:
    import av
    from aiortc import MediaStreamTrack

REORDER: Final = 2
"""So many later packets may come before one that is missing is taken for lost."""
MAX_SKIP: Final = 1000
"""Sequence numbers farther ahead or behind are another stream."""
BUCKET_S: Final = 0.5
BUCKETS: Final = 10
PREFETCH_S: Final = 0.08
"""aiortc holds so much sound back before it decodes the first (four packets), where it cannot be kept from it."""


class SenderClock:
    """Tells when something was sent, in monotonic time, from its RTP time stamp.

    The packet that travelled fastest in the last seconds is taken to have taken no time: what others took longer is
    jitter.  The clocks of sender and receiver may drift apart.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._stamp = 0  # time stamps wrap at 2^32
        self._offsets: deque[tuple[float, float]] = deque(maxlen=BUCKETS)  # (begin of half a second, the least in it)

    def sent(self, timestamp: int, now: float) -> float:
        """When the packet with this RTP time stamp, which arrives at ``now`` seconds, was sent."""
        ahead = (timestamp - (self._last if self._last is not None else timestamp)) & 0xFFFFFFFF
        self._stamp += ahead - (1 << 32) * (ahead >= 1 << 31)
        self._last = timestamp
        seconds = self._stamp / RATE
        offset = now - seconds
        if self._offsets and abs(offset - self._offsets[-1][1]) > 1.0:
            self._offsets.clear()  # another stream, or a clock that was set
        if not self._offsets or now - self._offsets[-1][0] >= BUCKET_S:
            self._offsets.append((now, offset))
        elif offset < self._offsets[-1][1]:
            self._offsets[-1] = (self._offsets[-1][0], offset)
        return seconds + min(least for _, least in self._offsets)


class Microphone:
    """Decodes one incoming Opus stream and passes it on as `SoundChunk`s, each as soon as it is there.

    Nothing is held back for jitter here: whoever plays the sound waits for its pictures anyway.
    """

    def __init__(self, speak: Callable[[SoundChunk], None]) -> None:
        self._speak = speak
        self._clock = SenderClock()
        self._waiting: dict[int, tuple[bytes, float]] = {}  # by sequence number: Opus and when it was sent
        self._next: int | None = None
        self._decoder: av.AudioCodecContext | None = None

    def packet(self, sequence: int, timestamp: int, payload: bytes, arrived: float | None = None) -> None:
        """An RTP packet of the stream, in whatever order; ``arrived`` now, or at that second of the monotonic clock."""
        if not payload:
            return
        sent = self._clock.sent(timestamp, time.monotonic() if arrived is None else arrived)
        ahead = (sequence - (self._next if self._next is not None else sequence)) & 0xFFFF
        if ahead > MAX_SKIP:
            if ahead >= 0x10000 - MAX_SKIP:
                return  # too late
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
        """Pass on what aiortc decodes, until ``track`` ends: for an aiortc that hands out no packets."""
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                self._say(frame, self._clock.sent(frame.pts or 0, time.monotonic() - PREFETCH_S))

    def _decode(self, payload: bytes, sent: float) -> None:
        import av

        if self._decoder is None:
            self._decoder = av.AudioCodecContext.create("libopus", "r")
            self._decoder.format, self._decoder.layout, self._decoder.sample_rate = "s16", "stereo", RATE
        try:
            for frame in self._decoder.decode(av.Packet(payload)):
                self._say(frame, sent)
        except av.FFmpegError:
            return  # no Opus: a hole of 20 ms

    def _say(self, frame: Any, sent: float) -> None:
        samples = np.asarray(frame.to_ndarray(), dtype=np.int16).reshape(-1, CHANNELS)
        # Its last sample had been captured when the packet was sent.
        self._speak(SoundChunk(round((sent - len(samples) / RATE) * 1e9), samples))

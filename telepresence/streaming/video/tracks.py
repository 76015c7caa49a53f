"""aiortc video tracks: packets that are encoded once for all viewers, or raw frames for an encoder of each viewer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Final

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from telepresence.runtime.loop_queue import LoopQueue
from telepresence.streaming.video.encoder import CLOCK_RATE
from telepresence.streaming.video.encoder_hub import EncodedFrame, EncoderHub, RawFrame

BACKLOG: Final = 8
"""Maximum number of video packets that wait for one viewer (a quarter of a second); with more it counts as stalled."""


class VideoPacketTrack(MediaStreamTrack):
    """aiortc track of shared video packets, which begins with the next keyframe; used on the event loop.

    Single packets are never dropped, as later frames refer to them: if the viewer stalls, all waiting packets are
    dropped, and it continues with the next keyframe.
    """

    kind = "video"

    def __init__(self, on_start: Callable[[], None], on_stop: Callable[[], None], on_stall: Callable[[], None]) -> None:
        """``on_start``: the peer is connected.  ``on_stop``: the track has ended; called once.  ``on_stall``: the
        waiting packets were dropped, and a keyframe is needed."""
        super().__init__()
        self._on_start, self._on_stop, self._on_stall = on_start, on_stop, on_stall
        self._backlog: deque[EncodedFrame] = deque()
        self._arrived = asyncio.Event()
        self._needs_keyframe = True
        self._last_pts = -1
        self._started = False

    async def recv(self) -> av.Packet[av.VideoStream]:
        """The next packet; called by aiortc's sender, for the first time when the peer is connected."""
        if not self._started and self.readyState == "live":
            self._started = True
            self._on_start()
        while not self._backlog:
            self._arrived.clear()
            if self.readyState != "live":
                raise MediaStreamError
            await self._arrived.wait()
        return self._backlog.popleft().packet

    def stop(self) -> None:
        """End the track; may be called twice."""
        if self.readyState == "live":
            super().stop()
            self._on_stop()
            self._arrived.set()

    def restart(self) -> None:
        """Drop packets until the next keyframe, because those before it belong to another rendition or are lost."""
        self._needs_keyframe = True

    def push(self, encoded: EncodedFrame) -> bool:
        """Queue an encoded frame; returns False if it was a keyframe with a used time stamp: another one is needed."""
        if len(self._backlog) >= BACKLOG and not self._needs_keyframe:
            self._backlog.clear()
            self._needs_keyframe = True
            if not encoded.keyframe:
                self._on_stall()
        pts = encoded.packet.pts or 0
        if self._needs_keyframe and encoded.keyframe:
            # Two renditions of one frame have the same pts, and a receiver would take both for one frame.
            if pts <= self._last_pts:
                return False
            self._needs_keyframe = False
        if not self._needs_keyframe:
            self._backlog.append(encoded)
            self._last_pts = pts
            self._arrived.set()
        return True


class RawFrameTrack(MediaStreamTrack):
    """aiortc track of raw frames for aiortc's own encoders, where packets cannot be shared; only the newest is kept.

    Every viewer gets a copy of each frame, as the encoders write the picture type into it.
    """

    kind = "video"

    def __init__(self, hub: EncoderHub) -> None:
        super().__init__()
        self._hub = hub
        self._callback = LoopQueue(self._push).put
        self._newest: RawFrame | None = None
        self._arrived = asyncio.Event()
        self._subscribed = False

    async def recv(self) -> av.VideoFrame:
        """The next frame; called by aiortc's sender, for the first time when the peer is connected."""
        if not self._subscribed and self.readyState == "live":
            self._subscribed = True
            self._hub.subscribe_raw(self._callback)
        while (raw := self._newest) is None:
            self._arrived.clear()
            await self._arrived.wait()
            if self.readyState != "live":
                raise MediaStreamError
        self._newest = None
        frame = av.VideoFrame.from_ndarray(raw.yuv, format="yuv420p")
        frame.pts, frame.time_base = raw.pts, Fraction(1, CLOCK_RATE)
        return frame

    def stop(self) -> None:
        """End the track."""
        super().stop()
        self._hub.unsubscribe_raw(self._callback)
        self._arrived.set()

    def _push(self, raw: RawFrame) -> None:
        self._newest = raw
        self._arrived.set()

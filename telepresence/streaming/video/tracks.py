"""What a viewer's sender pulls from: shared packets, or pictures for an encoder of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from fractions import Fraction

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from telepresence.runtime.handover import Handover
from telepresence.streaming.video.encoder import CLOCK_RATE
from telepresence.streaming.video.encoder_hub import EncodedPicture, EncoderHub, RawPicture

BACKLOG = 8  # packets that may wait for a viewer, a quarter of a second; more means that it stalls


class PacketTrack(MediaStreamTrack):
    """A shared stream from its next keyframe on; lives on the event loop.

    A single packet is never dropped, for everything after it would be garbage: a viewer that falls behind loses all
    that waits and goes on at the next keyframe.
    """

    kind = "video"

    def __init__(self, on_start: Callable[[], None], on_stop: Callable[[], None], on_stall: Callable[[], None]) -> None:
        """``on_start`` is called when the peer is connected, ``on_stop`` once at the end, ``on_stall`` when all that
        waited was lost, so that a keyframe is needed."""
        super().__init__()
        self._on_start, self._on_stop, self._on_stall = on_start, on_stop, on_stall
        self._backlog: deque[EncodedPicture] = deque()
        self._arrived = asyncio.Event()
        self._needs_keyframe = True
        self._last_pts = -1
        self._started = False

    async def recv(self) -> av.Packet[av.VideoStream]:
        if not self._started and self.readyState == "live":  # only now is the peer connected
            self._started = True
            self._on_start()
        while not self._backlog:
            self._arrived.clear()
            if self.readyState != "live":
                raise MediaStreamError
            await self._arrived.wait()
        return self._backlog.popleft().packet

    def stop(self) -> None:
        if self.readyState == "live":
            super().stop()
            self._on_stop()
            self._arrived.set()

    def restart(self) -> None:
        """Another stream begins: take nothing before its first keyframe."""
        self._needs_keyframe = True

    def take(self, picture: EncodedPicture) -> bool:
        """Queue ``picture``; False where it was a keyframe that came too early, so that another one is needed."""
        if len(self._backlog) >= BACKLOG and not self._needs_keyframe:
            self._backlog.clear()
            self._needs_keyframe = True
            if not picture.keyframe:
                self._on_stall()
        pts = picture.packet.pts or 0
        if self._needs_keyframe and picture.keyframe:
            # Two streams of one picture share its pts, and a receiver takes two pictures of one pts for one.
            if pts <= self._last_pts:
                return False
            self._needs_keyframe = False
        if not self._needs_keyframe:
            self._backlog.append(picture)
            self._last_pts = pts
            self._arrived.set()
        return True


class PictureTrack(MediaStreamTrack):
    """Pictures for aiortc's own encoders, when packets cannot be shared; the newest wins.

    Each is a frame of this viewer's own: the encoders write the picture type into it.
    """

    kind = "video"

    def __init__(self, hub: EncoderHub) -> None:
        super().__init__()
        self._hub = hub
        self._sink = Handover(self._take).put
        self._newest: RawPicture | None = None
        self._arrived = asyncio.Event()
        self._subscribed = False

    async def recv(self) -> av.VideoFrame:
        if not self._subscribed and self.readyState == "live":
            self._subscribed = True
            self._hub.subscribe_pictures(self._sink)
        while (picture := self._newest) is None:
            self._arrived.clear()
            await self._arrived.wait()
            if self.readyState != "live":
                raise MediaStreamError
        self._newest = None
        frame = av.VideoFrame.from_ndarray(picture.yuv, format="yuv420p")
        frame.pts, frame.time_base = picture.pts, Fraction(1, CLOCK_RATE)
        return frame

    def stop(self) -> None:
        super().stop()
        self._hub.unsubscribe_pictures(self._sink)
        self._arrived.set()

    def _take(self, picture: RawPicture) -> None:
        self._newest = picture
        self._arrived.set()

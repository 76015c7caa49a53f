"""What a viewer's sender pulls from: the shared packets, or pictures for an encoder of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from fractions import Fraction

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from telepresence.streaming.encoder import CLOCK_RATE
from telepresence.streaming.hub import EncodedPicture, EncoderHub, RawPicture

BACKLOG = 4  # packets that may wait for a viewer; more means that it stalls


class PacketTrack(MediaStreamTrack):
    """The shared H.264 stream from its next keyframe on.

    A single packet is never dropped, for everything after it would be garbage: a viewer that falls behind loses all
    that waits and goes on at the next keyframe.
    """

    kind = "video"

    def __init__(self, hub: EncoderHub) -> None:
        super().__init__()
        self._hub = hub
        self._network = asyncio.get_running_loop()
        self._backlog: deque[EncodedPicture] = deque()
        self._arrived = asyncio.Event()
        self._needs_keyframe = True
        self._subscribed = False

    async def recv(self) -> av.Packet[av.VideoStream]:
        if not self._subscribed and self.readyState == "live":  # only now is the peer connected
            self._subscribed = True
            self._hub.subscribe_packets(self._sink)
        while not self._backlog:
            self._arrived.clear()
            await self._arrived.wait()
            if self.readyState != "live":
                raise MediaStreamError
        return self._backlog.popleft().packet

    def stop(self) -> None:
        super().stop()
        self._hub.unsubscribe(self._sink)
        self._arrived.set()

    def _sink(self, picture: EncodedPicture) -> None:
        self._network.call_soon_threadsafe(self._take, picture)

    def _take(self, picture: EncodedPicture) -> None:
        if len(self._backlog) >= BACKLOG and not self._needs_keyframe:
            self._backlog.clear()
            self._needs_keyframe = True
            self._hub.request_keyframe()
        if picture.keyframe:
            self._needs_keyframe = False
        if not self._needs_keyframe:
            self._backlog.append(picture)
            self._arrived.set()


class PictureTrack(MediaStreamTrack):
    """Pictures for aiortc's encoders (VP8, or H.264 when packets cannot be shared); the newest wins.

    Each is a frame of this viewer's own: the encoders write the picture type into it.
    """

    kind = "video"

    def __init__(self, hub: EncoderHub) -> None:
        super().__init__()
        self._hub = hub
        self._network = asyncio.get_running_loop()
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
        self._hub.unsubscribe(self._sink)
        self._arrived.set()

    def _sink(self, picture: RawPicture) -> None:
        self._network.call_soon_threadsafe(self._take, picture)

    def _take(self, picture: RawPicture) -> None:
        self._newest = picture
        self._arrived.set()

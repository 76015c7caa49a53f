"""aiortc audio track: Opus packets that are encoded once for all viewers."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from telepresence.runtime.loop_queue import LoopQueue
from telepresence.streaming.audio.audio_hub import AudioHub

if TYPE_CHECKING:
    import av

BACKLOG: Final = 10
"""Maximum number of audio packets that wait for one viewer (200 ms); of more the oldest are dropped."""


class AudioPacketTrack(MediaStreamTrack):
    """aiortc track with the packets of an `AudioHub` for one viewer; used on the event loop."""

    kind = "audio"

    def __init__(self, hub: AudioHub) -> None:
        super().__init__()
        self._hub = hub
        self._callback = LoopQueue(self._push, BACKLOG).put
        self._backlog: deque[av.Packet[Any]] = deque(maxlen=BACKLOG)
        self._arrived = asyncio.Event()
        self._subscribed = False

    async def recv(self) -> av.Packet[Any]:
        """The next packet; called by aiortc's sender, for the first time when the peer is connected."""
        if not self._subscribed and self.readyState == "live":
            self._subscribed = True
            self._hub.subscribe(self._callback)
        while not self._backlog:
            self._arrived.clear()
            await self._arrived.wait()
            if self.readyState != "live":
                raise MediaStreamError
        return self._backlog.popleft()

    def stop(self) -> None:
        """End the track."""
        super().stop()
        self._hub.unsubscribe(self._callback)
        self._arrived.set()

    def _push(self, packet: av.Packet[Any]) -> None:
        self._backlog.append(packet)
        self._arrived.set()

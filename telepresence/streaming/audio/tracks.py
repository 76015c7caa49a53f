"""What a viewer's sender of sound pulls from: the packets that all viewers share."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from telepresence.runtime.handover import Handover
from telepresence.streaming.audio.audio_hub import SoundHub

if TYPE_CHECKING:
    import av

BACKLOG: Final = 10
"""Packets that may wait for a viewer (200 ms); of more the oldest are dropped."""


class SoundTrack(MediaStreamTrack):
    """The packets of a `SoundHub` for one viewer."""

    kind = "audio"

    def __init__(self, hub: SoundHub) -> None:
        super().__init__()
        self._hub = hub
        self._sink = Handover(self._take, BACKLOG).put
        self._backlog: deque[av.Packet[Any]] = deque(maxlen=BACKLOG)
        self._arrived = asyncio.Event()
        self._subscribed = False

    async def recv(self) -> av.Packet[Any]:
        if not self._subscribed and self.readyState == "live":  # only now is the peer connected
            self._subscribed = True
            self._hub.subscribe(self._sink)
        while not self._backlog:
            self._arrived.clear()
            await self._arrived.wait()
            if self.readyState != "live":
                raise MediaStreamError
        return self._backlog.popleft()

    def stop(self) -> None:
        super().stop()
        self._hub.unsubscribe(self._sink)
        self._arrived.set()

    def _take(self, packet: av.Packet[Any]) -> None:
        self._backlog.append(packet)
        self._arrived.set()

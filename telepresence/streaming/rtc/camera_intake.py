"""A browser's camera: decoded pictures of an incoming track, or what was found in them, become camera frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from insta_runtime.types import Bytes
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.streaming.rtc.data_channels import Withheld

MAX_SIDE = 1280  # pixels; a larger picture is scaled down, so that a peer cannot fill the memory
FIRST_S = 20.0  # the first picture must come within this time: permission, connection, keyframe
SILENCE_S = 5.0  # a camera that sends nothing for so long is gone


class CameraIntake:
    """Drains one incoming video track into a mailbox, newest first, until it ends or falls silent."""

    def __init__(self, track: MediaStreamTrack, mailbox: Mailbox[CameraFrame], began: Callable[[], None]) -> None:
        self._track = track
        self._mailbox = mailbox
        self._began = began  # called at the first picture
        self._newest: tuple[int, av.VideoFrame | Withheld] | None = None
        self._arrived = asyncio.Event()
        self._last_ns = 0

    async def run(self) -> None:
        """Returns when the camera is gone.  aiortc queues without bound, so the queue is emptied at once."""
        drain = asyncio.create_task(self._drain())
        frame_id = 0
        try:
            while True:
                if self._newest is None:
                    self._arrived.clear()
                    await asyncio.wait_for(self._arrived.wait(), SILENCE_S if frame_id else FIRST_S)
                    if self._newest is None:
                        return
                (t_capture_ns, picture), self._newest = self._newest, None
                if isinstance(picture, Withheld):
                    frame = _black(frame_id, t_capture_ns, picture)
                else:
                    frame = CameraFrame(frame_id, t_capture_ns, await asyncio.to_thread(_rgb, picture))
                if frame_id == 0:
                    self._began()
                self._mailbox.put(frame)
                frame_id += 1
        except TimeoutError:
            return
        finally:
            drain.cancel()

    def take(self, withheld: Withheld) -> None:
        """What the browser found in a picture that it keeps; on the event loop."""
        # Not before what came last: a picture has the time of its arrival, not of its capture.
        self._last_ns = max(time.monotonic_ns() - withheld.age_ms * 1_000_000, self._last_ns + 1)
        self._newest = self._last_ns, withheld
        self._arrived.set()

    async def _drain(self) -> None:
        try:
            while True:
                picture = await self._track.recv()
                if isinstance(picture, av.VideoFrame):
                    self._last_ns = time.monotonic_ns()
                    self._newest = self._last_ns, picture
                    self._arrived.set()
        except MediaStreamError:
            self._newest = None
            self._arrived.set()


def _black(frame_id: int, t_capture_ns: int, withheld: Withheld) -> CameraFrame:
    black = np.broadcast_to(np.zeros(3, np.uint8), (withheld.height, withheld.width, 3))
    return CameraFrame(frame_id, t_capture_ns, black, withheld=True, landmarks=withheld.landmarks)


def _rgb(picture: av.VideoFrame) -> Bytes:
    """(H, W, 3) uint8, the longest side at most MAX_SIDE."""
    scale = min(1.0, MAX_SIDE / max(picture.width, picture.height))
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return np.asarray(picture.to_ndarray(format="rgb24", width=width, height=height), dtype=np.uint8)

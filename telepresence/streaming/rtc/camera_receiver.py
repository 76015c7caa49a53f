"""Receiver of a browser's camera: a WebRTC video track, or packets of landmarks, converted to camera frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from insta_runtime.types import Bytes
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.streaming.rtc.data_channels import LandmarkPacket

MAX_SIDE: Final = 1280
"""Maximum side of a camera frame in pixels; larger frames are scaled down, which bounds the memory that a peer uses."""
FIRST_S: Final = 20.0
"""Seconds within which the first frame must arrive, after permission, connection and keyframe."""
SILENCE_S: Final = 5.0
"""Seconds without a frame after which a camera counts as gone."""


class CameraReceiver:
    """Converts one incoming video track to camera frames in a mailbox, until it ends or sends nothing for too long.

    Only the newest frame is converted.  Landmarks of withheld frames become black frames, by `push_landmarks`.
    """

    def __init__(self, track: MediaStreamTrack, mailbox: Mailbox[CameraFrame], on_first: Callable[[], None]) -> None:
        """``on_first`` is called, on the event loop, before the first frame is put into ``mailbox``."""
        self._track = track
        self._mailbox = mailbox
        self._on_first = on_first
        self._newest: tuple[int, av.VideoFrame | LandmarkPacket] | None = None
        self._arrived = asyncio.Event()
        self._last_ns = 0

    async def run(self) -> None:
        """Convert frames; returns when the camera is gone.

        aiortc queues received frames without a limit, so a task of its own empties the queue at once.
        """
        drain = asyncio.create_task(self._drain())
        frame_id = 0
        try:
            while True:
                if self._newest is None:
                    self._arrived.clear()
                    await asyncio.wait_for(self._arrived.wait(), SILENCE_S if frame_id else FIRST_S)
                    if self._newest is None:
                        return
                (t_capture_ns, received), self._newest = self._newest, None
                if isinstance(received, LandmarkPacket):
                    frame = _black_frame(frame_id, t_capture_ns, received)
                else:
                    frame = CameraFrame(frame_id, t_capture_ns, await asyncio.to_thread(_to_rgb, received))
                if frame_id == 0:
                    self._on_first()
                self._mailbox.put(frame)
                frame_id += 1
        except TimeoutError:
            return
        finally:
            drain.cancel()

    def push_landmarks(self, packet: LandmarkPacket) -> None:
        """Use the landmarks of a frame that stays in the browser as the newest camera frame; on the event loop."""
        # Capture times must grow, and the time of a video frame is that of its arrival.
        self._last_ns = max(time.monotonic_ns() - packet.age_ms * 1_000_000, self._last_ns + 1)
        self._newest = self._last_ns, packet
        self._arrived.set()

    async def _drain(self) -> None:
        try:
            while True:
                received = await self._track.recv()
                if isinstance(received, av.VideoFrame):
                    self._last_ns = time.monotonic_ns()
                    self._newest = self._last_ns, received
                    self._arrived.set()
        except MediaStreamError:
            self._newest = None
            self._arrived.set()


def _black_frame(frame_id: int, t_capture_ns: int, packet: LandmarkPacket) -> CameraFrame:
    """Camera frame for landmarks alone: black, of the size of the frame that the browser keeps."""
    black = np.broadcast_to(np.zeros(3, np.uint8), (packet.height, packet.width, 3))
    return CameraFrame(frame_id, t_capture_ns, black, landmarks_only=True, landmarks=packet.landmarks)


def _to_rgb(frame: av.VideoFrame) -> Bytes:
    """(H, W, 3) uint8 RGB, scaled down to at most MAX_SIDE."""
    scale = min(1.0, MAX_SIDE / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    return np.asarray(frame.to_ndarray(format="rgb24", width=width, height=height), dtype=np.uint8)

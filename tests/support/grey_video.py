"""A video track of grey frames, for WebRTC peers that send a camera."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import av
import numpy as np
from aiortc import MediaStreamTrack


class GreyVideo(MediaStreamTrack):
    """Grey frames, 20 a second."""

    kind = "video"
    sent = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(0.05)
        frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 90, np.uint8), format="rgb24")
        frame.pts, frame.time_base = self.sent * 4500, Fraction(1, 90000)
        self.sent += 1
        return frame

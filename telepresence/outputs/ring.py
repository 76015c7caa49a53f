"""Pictures from one process to another through shared memory: three slots, the newest wins, nobody waits."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from insta_runtime.types import Bytes

SLOTS = 3
TEXT_BYTES = 256


@dataclass(frozen=True)
class Picture:
    """``rgb`` (H, W, 3) uint8 and a line of text to show with it; ``sequence`` counts from 1."""

    sequence: int
    rgb: Bytes
    text: str


class PictureRing:
    """One writer, one reader.  The writer never overwrites the slot written last, so a reader that copies at once
    has two pictures' time to do it; one that was overtaken nevertheless notices and takes the newer picture.
    """

    def __init__(self, max_side: int, name: str | None = None) -> None:
        """Make a ring for pictures of at most ``max_side`` x ``max_side``; or open the one called ``name``."""
        slot = np.dtype(
            [
                ("sequence", "<u8"),  # 0 while the slot is being written
                ("height", "<u4"),
                ("width", "<u4"),
                ("text", f"S{TEXT_BYTES}"),
                ("pixels", "u1", (max_side * max_side * 3,)),
            ]
        )
        layout = np.dtype([("newest", "<u8"), ("slots", slot, (SLOTS,))])
        self._owner = name is None
        self._memory = SharedMemory(name, create=self._owner, size=layout.itemsize if self._owner else 0)
        self._max_side = max_side
        self._ring = np.ndarray((), layout, self._memory.buf)
        if self._owner:
            self._ring["newest"] = 0

    @property
    def name(self) -> str:
        return self._memory.name

    def write(self, rgb: Bytes, text: str) -> None:
        """Publish a picture; larger ones than the ring was made for are thinned by leaving out pixels."""
        step = -(-max(rgb.shape[:2]) // self._max_side)
        rgb = rgb[::step, ::step]
        sequence = int(self._ring["newest"]) + 1
        slot = self._ring["slots"][sequence % SLOTS]
        slot["sequence"] = 0
        slot["height"], slot["width"] = rgb.shape[:2]
        slot["text"] = text.encode()[:TEXT_BYTES]
        slot["pixels"][: rgb.size] = rgb.reshape(-1)
        slot["sequence"] = sequence
        self._ring["newest"] = sequence

    def read(self, after: int) -> Picture | None:
        """The newest picture if its sequence number is above ``after``."""
        sequence = int(self._ring["newest"])
        if sequence <= after:
            return None
        slot = self._ring["slots"][sequence % SLOTS]
        height, width = int(slot["height"]), int(slot["width"])
        rgb = slot["pixels"][: height * width * 3].reshape(height, width, 3).copy()
        text = bytes(slot["text"]).decode(errors="replace")
        return Picture(sequence, rgb, text) if int(slot["sequence"]) == sequence else None

    def close(self) -> None:
        """Let go of the memory; the process that made it also removes it.  May be called twice."""
        if self._memory.buf is None:
            return
        del self._ring
        self._memory.close()
        if self._owner:
            self._memory.unlink()

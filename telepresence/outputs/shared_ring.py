"""Records from one process to another through shared memory: three slots, the newest wins, nobody waits."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from insta_runtime.types import Bytes

SLOTS = 3


@dataclass(frozen=True)
class RingMessage:
    """``data`` as it was written; ``sequence`` counts from 1."""

    sequence: int
    data: bytes


class SharedRing:
    """One writer, one reader.  The writer never overwrites the slot written last, so a reader that copies at once
    has two records' time to do it; one that was overtaken nevertheless notices, and finds the newer record next.
    """

    def __init__(self, capacity: int, name: str | None = None) -> None:
        """Make a ring for records of at most ``capacity`` bytes; or open one made for as many, by its ``name``."""
        slot = np.dtype([("sequence", "<u8"), ("size", "<u8"), ("data", "u1", (capacity,))])  # sequence 0: in work
        layout = np.dtype([("newest", "<u8"), ("slots", slot, (SLOTS,))])
        self._owner = name is None
        self._memory = SharedMemory(name, create=self._owner, size=layout.itemsize if self._owner else 0)
        self._capacity = capacity
        self._ring = np.ndarray((), layout, self._memory.buf)
        if self._owner:
            self._ring["newest"] = 0

    @property
    def name(self) -> str:
        return self._memory.name

    def write(self, *parts: bytes | Bytes) -> None:
        """Publish one record: the bytes of ``parts``, one behind the other.  ValueError if they are too many."""
        views = [np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part.reshape(-1) for part in parts]
        size = sum(view.size for view in views)
        if size > self._capacity:
            raise ValueError(f"{size} bytes are too many for a ring of {self._capacity}")
        sequence = int(self._ring["newest"]) + 1
        slot = self._ring["slots"][sequence % SLOTS]
        slot["sequence"] = 0
        slot["size"] = size
        at = 0
        for view in views:
            slot["data"][at : at + view.size] = view
            at += view.size
        slot["sequence"] = sequence
        self._ring["newest"] = sequence

    def read(self, after: int) -> RingMessage | None:
        """The newest record if its sequence number is above ``after``."""
        sequence = int(self._ring["newest"])
        if sequence <= after:
            return None
        slot = self._ring["slots"][sequence % SLOTS]
        data = slot["data"][: min(int(slot["size"]), self._capacity)].tobytes()
        return RingMessage(sequence, data) if int(slot["sequence"]) == sequence else None

    def close(self) -> None:
        """Let go of the memory; the process that made it also removes it.  May be called twice."""
        if self._memory.buf is None:
            return
        del self._ring
        self._memory.close()
        if self._owner:
            self._memory.unlink()

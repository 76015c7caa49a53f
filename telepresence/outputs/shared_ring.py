"""Lock-free ring buffer in shared memory that passes the newest message from one process to another."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from insta_runtime.types import Bytes

SLOTS = 3
"""Number of message slots of a `SharedRing`."""


@dataclass(frozen=True)
class RingMessage:
    """One message read from a `SharedRing`; ``sequence`` is its number, counted from 1."""

    sequence: int
    data: bytes


class SharedRing:
    """Lock-free ring buffer of messages in shared memory, for one writing and one reading process.

    The reader gets only the newest message.  The writer never overwrites the slot written last, so the reader has the
    time of two more messages to copy it; if it was overwritten meanwhile, the reader detects that and reads the newer
    message next.
    """

    def __init__(self, capacity: int, name: str | None = None) -> None:
        """Create a ring for messages of at most ``capacity`` bytes, or open an existing one by its ``name``."""
        slot = np.dtype([("sequence", "<u8"), ("size", "<u8"), ("data", "u1", (capacity,))])  # sequence 0: in work
        layout = np.dtype([("newest", "<u8"), ("slots", slot, (SLOTS,))])
        self._owner = self._named = name is None
        self._memory = SharedMemory(name, create=self._owner, size=layout.itemsize if self._owner else 0)
        self._capacity = capacity
        self._ring = np.ndarray((), layout, self._memory.buf)
        if self._owner:
            self._ring["newest"] = 0

    @property
    def name(self) -> str:
        """Name under which another process can open the ring."""
        return self._memory.name

    def write(self, *parts: bytes | Bytes) -> None:
        """Write one message: the joined bytes of ``parts``.  ValueError if they exceed the capacity."""
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
        """The newest message if its sequence number is above ``after``; otherwise None, also if it was overwritten."""
        sequence = int(self._ring["newest"])
        if sequence <= after:
            return None
        slot = self._ring["slots"][sequence % SLOTS]
        data = slot["data"][: min(int(slot["size"]), self._capacity)].tobytes()
        return RingMessage(sequence, data) if int(slot["sequence"]) == sequence else None

    def hide(self) -> None:
        """Unlink the shared memory once the other process has opened it, so that it is freed even if both are killed.

        Has an effect only in the process that created the ring; on Windows shared memory ends with its processes.
        """
        if self._named:
            self._named = False
            self._memory.unlink()

    def close(self) -> None:
        """Release the shared memory; the process that created it also removes it.  May be called twice."""
        if self._memory.buf is None:
            return
        del self._ring
        self._memory.close()
        self.hide()

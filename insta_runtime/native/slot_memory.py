"""Memory of replay buffers on a CPU: pages are allocated when they are first written, and can be freed by slot."""

from __future__ import annotations

import mmap
from math import prod

import numpy as np
import torch


class SlotMemory:
    """Tensor of zeros on a CPU with one row per slot of a replay buffer; a page takes memory once it is written.

    Huge pages are not used: a head marks scattered cells of its rows, and every first write would commit 2 MiB.

    Attributes:
        rows: (slots, ...) tensor of all slots, at a fixed address.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """``shape`` (slots, ...) and element type of `rows`."""
        size = prod(shape) * dtype.itemsize
        self._row_bytes = size // shape[0] if shape[0] else 0
        self._map: mmap.mmap | None = None
        if size and hasattr(mmap, "MADV_DONTNEED"):
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                self._advise(mmap.MADV_NOHUGEPAGE, 0, size)
        memory = np.zeros(size, np.uint8) if self._map is None else self._map
        self.rows = torch.frombuffer(memory, dtype=dtype).view(shape) if size else torch.zeros(shape, dtype=dtype)

    def release(self, first: int, end: int) -> None:
        """Return the memory of the rows ``first`` to ``end`` - 1 to the system; their contents are lost.

        Pages that hold a part of another row are kept.
        """
        begin = -(-first * self._row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end * self._row_bytes // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if self._map is not None and length > 0:
            self._advise(mmap.MADV_DONTNEED, begin, length)

    def _advise(self, advice: int, begin: int, length: int) -> None:
        assert self._map is not None
        try:
            self._map.madvise(advice, begin, length)
        except OSError:  # a kernel without huge pages refuses the advice to avoid them
            if advice == mmap.MADV_DONTNEED:
                raise

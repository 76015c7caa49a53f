"""Main memory of replay slots: committed where it is written, and given back to the system slot by slot."""

from __future__ import annotations

import mmap
from math import prod
from typing import Final

import numpy as np
import torch

NUMPY_TYPES: Final = {torch.float32: np.float32, torch.int32: np.int32, torch.uint8: np.uint8}
"""Element types of slot memory."""


class SlotMemory:
    """Zeros on a CPU with one row per slot; memory is committed page by page, only where rows are written.

    Huge pages are not used: a head marks scattered cells of its rows, and every first write would commit 2 MiB.

    Attributes:
        rows: (slots, ...) tensor of all slots, at a fixed address.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """``shape`` (slots, ...) and element type of `rows`."""
        numbers = np.dtype(NUMPY_TYPES[dtype])
        size = prod(shape) * numbers.itemsize
        self._row_bytes = size // shape[0] if shape[0] else 0
        self._map: mmap.mmap | None = None
        if size and hasattr(mmap, "MADV_DONTNEED"):
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                self._advise(mmap.MADV_NOHUGEPAGE, 0, size)
            values = np.frombuffer(self._map, numbers).reshape(shape)
        else:
            values = np.zeros(shape, numbers)
        self.rows = torch.from_numpy(values)

    def release(self, first: int, end: int) -> None:
        """Give the memory of the rows ``first`` to ``end`` - 1 back to the system; their contents are lost.

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

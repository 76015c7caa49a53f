"""Returning unused memory of this process to the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_memory() -> None:
    """Collect garbage, and return the heap's free memory to the system.

    Takes about 50 ms in which no other Python thread runs: call it while there is no viewer.
    """
    gc.collect()  # sessions leave cycles of objects, which are otherwise collected late
    release_heap()


def release_heap() -> None:
    """Return the free memory that glibc keeps in its heap.  Takes about 10 ms; other Python threads run meanwhile."""
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if malloc_trim is not None:
            malloc_trim(0)

"""Memory that is spare, given back."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Return to the system what is held and not used.  Takes some 50 ms, in which nothing else runs: when nobody looks.

    Sessions leave cycles of objects behind, which are collected late.
    """
    gc.collect()
    trim()


def trim() -> None:
    """Return the holes of the heap, which glibc keeps for itself.  Takes some 10 ms, and lets Python's threads run."""
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
        if malloc_trim is not None:
            malloc_trim(0)

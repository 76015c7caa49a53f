"""Memory that is spare, given back."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Return to the system what is held and not used.  Takes some 50 ms, in which nothing else runs: when nobody looks.

    Sessions leave cycles of objects behind, which are collected late, and holes, which glibc keeps for itself.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
        if trim is not None:
            trim(0)

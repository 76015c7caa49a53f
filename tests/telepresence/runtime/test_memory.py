"""Memory that is returned to the system."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from telepresence.runtime.memory import release_memory


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other heaps")
def test_what_was_freed_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    release_memory()
    kept = [bytes(2000) for _ in range(50_000)]  # of the heap, not each of the system
    last, held = kept[-1], resident()
    del kept
    release_memory()
    assert resident() < held - 80e6
    assert len(last) == 2000, "which lies above all of them"

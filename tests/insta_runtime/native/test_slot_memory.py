"""Memory of replay buffers on a CPU: allocated page by page where it is written, and freed by slot."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from insta_runtime.native.slot_memory import SlotMemory


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems commit memory in other ways")
def test_memory_is_committed_where_it_is_written_and_released_by_slot() -> None:
    before = resident()
    memory = SlotMemory((64, 1 << 20), torch.int32)  # 256 MiB
    memory.rows[:, :: 1 << 19] = 1  # two pages of each slot
    assert resident() < before + 20e6, "no huge pages"
    memory.rows[:32] = 7
    written = resident()
    memory.release(16, 32)
    assert resident() < written - 50e6
    assert bool((memory.rows[:16] == 7).all())
    assert not bool(memory.rows[16:32].any())


def test_rows_that_share_a_page_with_a_released_one_keep_their_values() -> None:
    memory = SlotMemory((100, 1000), torch.float32)
    memory.rows[:] = 3.0
    memory.release(10, 20)
    assert bool((memory.rows[:10] == 3.0).all())
    assert bool((memory.rows[20:] == 3.0).all())

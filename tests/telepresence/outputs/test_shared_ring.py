"""Ring in shared memory: readers in other processes get the newest whole message."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from telepresence.outputs.shared_ring import SLOTS, SharedRing
from tests.support.waiting import until


def test_the_ring_passes_the_newest_message() -> None:
    writer = SharedRing(100)
    reader = SharedRing(100, writer.name)
    try:
        assert reader.read(0) is None
        records = [bytes([i] * (10 + i)) for i in range(2 * SLOTS)]
        for record in records:
            writer.write(record[:4], np.frombuffer(record[4:], np.uint8).reshape(1, -1))
        got = reader.read(0)
        assert got is not None
        assert (got.sequence, got.data) == (len(records), records[-1])
        assert reader.read(got.sequence) is None
        with pytest.raises(ValueError, match="too many"):
            writer.write(bytes(60), bytes(41))
        assert reader.read(got.sequence) is None
    finally:
        reader.close()
        writer.close()
        writer.close()


def test_a_reader_never_gets_an_incomplete_message() -> None:
    ring = SharedRing(1 << 16)
    going = True

    def write() -> None:
        value = 0
        while going:
            value = (value + 1) % 256
            ring.write(bytes([value]) * (1 << 16))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sequences = {0}

        def read() -> bool:
            record = ring.read(max(sequences))
            if record is not None:
                sequences.add(record.sequence)
                assert len(set(record.data)) == 1
            return len(sequences) > 100

        until(read)
    finally:
        going = False
        writer.join()
        ring.close()

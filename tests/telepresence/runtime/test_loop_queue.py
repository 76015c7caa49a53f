"""Queue from threads to the event loop: order, bound, and the report of lost values."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from telepresence.runtime.loop_queue import LoopQueue


def test_values_arrive_in_order_from_any_thread() -> None:
    async def scenario() -> list[int]:
        received: list[int] = []
        queue = LoopQueue(received.append, limit=1000)

        def put() -> None:
            for number in range(500):
                queue.put(number)

        await asyncio.to_thread(put)
        await asyncio.sleep(0.05)
        return received

    assert asyncio.run(scenario()) == list(range(500))


@pytest.mark.parametrize("limit", [1, 4])
def test_a_blocked_loop_gets_the_newest_values_and_a_report_of_the_loss(limit: int) -> None:
    async def scenario() -> list[Any]:
        received: list[Any] = []
        queue = LoopQueue(received.append, limit, lambda: received.append("lost"))

        def put() -> None:
            for number in range(1, 51):
                queue.put(number)

        thread = threading.Thread(target=put)
        thread.start()
        thread.join()  # blocks the loop
        assert len(queue._waiting) <= limit
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        queue.put(51)
        await asyncio.sleep(0.05)
        return received

    received = asyncio.run(scenario())
    assert received[0] == "lost"
    assert received.count("lost") == 1
    assert received[-2:] == [50, 51]
    assert len(received) <= limit + 2

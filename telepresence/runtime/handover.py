"""From a thread to the event loop: what a loop that is busy, or stands still, may find waiting is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """Hands values to ``take`` on the event loop, in order; `put` may be called on any thread and never waits.

    Where more than ``limit`` wait, all but the newest are lost, and ``lost`` is called on the loop before the next one
    is taken.  Made on the loop.
    """

    def __init__(self, take: Callable[[T], None], limit: int = 1, lost: Callable[[], None] = lambda: None) -> None:
        self._take, self._limit, self._lost = take, limit, lost
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[T] = []
        self._overrun = False

    def put(self, value: T) -> None:
        with self._lock:
            asleep = not self._waiting
            if len(self._waiting) >= self._limit:
                self._waiting.clear()
                self._overrun = True
            self._waiting.append(value)
        if asleep:
            self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        with self._lock:
            values, self._waiting = self._waiting, []
            overrun, self._overrun = self._overrun, False
        if overrun:
            self._lost()
        for value in values:
            self._take(value)

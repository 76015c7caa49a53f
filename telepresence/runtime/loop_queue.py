"""Bounded queue from threads to an asyncio event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class LoopQueue(Generic[T]):
    """Passes values from any thread to a callback on the event loop, in order; a busy loop finds at most ``limit``.

    If more values are waiting, all but the newest are dropped.
    """

    def __init__(self, take: Callable[[T], None], limit: int = 1, lost: Callable[[], None] = lambda: None) -> None:
        """Create it on the event loop, which calls ``take`` for each value, and ``lost`` before it after a drop."""
        self._take, self._limit, self._lost = take, limit, lost
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[T] = []
        self._overrun = False

    def put(self, value: T) -> None:
        """Append a value; any thread, never waits."""
        with self._lock:
            asleep = not self._waiting
            if len(self._waiting) >= self._limit:
                self._waiting.clear()
                self._overrun = True
            self._waiting.append(value)
        if asleep:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            values, self._waiting = self._waiting, []
            overrun, self._overrun = self._overrun, False
        if overrun:
            self._lost()
        for value in values:
            self._take(value)

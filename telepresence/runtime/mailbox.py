"""A slot of size one between two threads: the newest value wins, what was never read is counted."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Hand values from one thread to another without a queue.

    ``put`` never blocks and replaces an unread value (counted in ``drops``).  ``get`` waits for a value that
    this reader has not had yet.  ``close`` wakes every reader; from then on ``get`` returns None.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.drops = 0
        self._value: T | None = None
        self._fresh = False
        self._closed = False
        self._condition = threading.Condition()

    def put(self, value: T) -> None:
        with self._condition:
            if self._fresh:
                self.drops += 1
            self._value, self._fresh = value, True
            self._condition.notify()

    def get(self, timeout: float | None = None) -> T | None:
        """The newest unread value, or None after ``timeout`` seconds or when closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._fresh or self._closed, timeout)
            if self._closed or not self._fresh:
                return None
            self._fresh = False
            return self._value

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

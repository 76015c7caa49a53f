"""Mailbox: a slot of size one between two threads, which holds the newest value."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Passes the newest value from one thread to another.  Every method may be called from any thread.

    Attributes:
        name: name of the mailbox in ``drops`` of `/status`.
        drops: number of values that were replaced before they were read.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.drops = 0
        self._value: T | None = None
        self._fresh = False
        self._closed = False
        self._condition = threading.Condition()

    def put(self, value: T) -> None:
        """Replace the value, unread or not; never waits."""
        with self._condition:
            if self._fresh:
                self.drops += 1
            self._value, self._fresh = value, True
            self._condition.notify()

    def get(self, timeout: float | None = None) -> T | None:
        """The newest unread value; None after ``timeout`` seconds, or once the mailbox is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._fresh or self._closed, timeout)
            if self._closed or not self._fresh:
                return None
            self._fresh = False
            return self._value

    def close(self) -> None:
        """Wake every reader; from now on `get` returns None."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

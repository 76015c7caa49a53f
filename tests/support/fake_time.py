"""A substitute for the module ``time`` whose clock only advances by `FakeTime.sleep`, for tests of pacing."""

from __future__ import annotations


class FakeTime:
    """Stands in for the ``time`` module of a module under test; starts at ``start`` seconds."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now_ns = round(start * 1e9)

    def monotonic_ns(self) -> int:
        """Nanoseconds of the fake clock."""
        return self._now_ns

    def monotonic(self) -> float:
        """Seconds of the fake clock."""
        return self._now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        """Advance the clock; returns at once."""
        self._now_ns += round(max(seconds, 0.0) * 1e9)

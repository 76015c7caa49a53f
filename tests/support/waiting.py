"""Waiting for a condition, with a limit that only a hanging program reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(
    condition: Callable[[], Any], seconds: float = 120.0, what: object = "the condition", *, pause: float = 0.001
) -> Any:
    """Call ``condition`` until it returns a true value, and return that value.

    Raises AssertionError with ``what`` after ``seconds``; ``pause`` is the time between two calls, in seconds.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true within {seconds:.0f} s: {what}"
        time.sleep(pause)
    return value

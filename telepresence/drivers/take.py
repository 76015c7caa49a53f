"""A recorded take as a driver: its states at the pace at which they were captured."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

from insta_runtime.types import HeadState, Take


def schedule(take: Take) -> list[tuple[float, HeadState]]:
    """Every valid state of a take with its time in seconds from the first frame, by its capture times.

    A take whose capture times do not grow is spaced by its frame rate.
    """
    times = [state.t_capture_ns for state in take.states]
    if any(later <= earlier for earlier, later in pairwise(times)):
        times = [round(index * 1e9 / take.fps) for index in range(len(times))]
    return [
        ((stamp - times[0]) / 1e9, state)
        for stamp, state, valid in zip(times, take.states, take.valid, strict=True)
        if valid
    ]


def play(take: Take, stop: threading.Event | None = None) -> Iterator[HeadState]:
    """The valid states of a take, each when it is due and stamped with that moment, until ``stop`` is set.

    A state that is due when a later one is too is left out: a slow consumer gets fewer states, not old ones.
    """
    entries = schedule(take)
    stop = stop or threading.Event()
    start = time.monotonic()
    for index, (due, state) in enumerate(entries):
        now = time.monotonic() - start
        if index + 1 < len(entries) and entries[index + 1][0] <= now:
            continue
        if stop.wait(max(0.0, due - now)):
            return
        yield state.at(time.monotonic_ns())

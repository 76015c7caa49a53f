"""A recorded take as a driver: its states at the pace at which they were captured, in a call over and over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from insta_runtime.types import HeadState, Take
from telepresence.drivers.blend import blend, smooth
from telepresence.drivers.inlet import Inlet, Transfer, now_ns

SEAM_S: Final = 0.4
"""Time in which the end of a take that plays again becomes its beginning."""


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
        if stop.wait(min(max(0.0, due - now), threading.TIMEOUT_MAX)):
            return
        yield state.at(time.monotonic_ns())


class TakeDriver(Inlet):
    """Plays ``take`` from `start` to `stop`, over and over; the face of ``person`` (a `fingerprint`)."""

    def __init__(
        self,
        take: Take,
        person: str,
        *,
        accepted: Callable[[], None] = lambda: None,
        transfer: Transfer = lambda state, _person: state,
    ) -> None:
        super().__init__("take", refused=lambda _text: None, accepted=accepted, transfer=transfer)
        self._take, self._person = take, person

    def _serve(self) -> None:
        last: HeadState | None = None
        while not self._stopping.is_set():
            began, end = time.monotonic(), last
            for state in play(self._take, self._stopping):
                seam = (time.monotonic() - began) / SEAM_S
                last = state if end is None or seam >= 1.0 else blend(end, state, smooth(seam)).at(state.t_capture_ns)
                self._show(last, self.counts["taken"], now_ns(), self._person)
            if last is None:
                return

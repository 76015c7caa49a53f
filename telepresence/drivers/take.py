"""A recorded take as a driver: its states at the pace at which they were captured, in a call over and over."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import HeadState, Take
from telepresence.drivers.blend import blend
from telepresence.drivers.receiver import Inlet, Transfer, now_ns

SEAM_S: Final = 0.4
"""Time in which the end of a take that plays again becomes its beginning."""
WAIT_S: Final = 0.5
"""A stop is noticed within this time."""


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


class Playback:
    """The valid states of a take, from now on each when it is due and stamped with that moment.

    A state that is due when a later one is too is left out: a slow consumer gets fewer states, not old ones.
    """

    def __init__(self, take: Take) -> None:
        self._entries = deque(schedule(take))
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Whether there was the last state."""
        return not self._entries

    def next(self, stop: threading.Event, patience_s: float = threading.TIMEOUT_MAX) -> HeadState | None:
        """Wait for the next state; None if it is not due within ``patience_s``, or once ``stop`` is set."""
        now = self.elapsed
        while len(self._entries) > 1 and self._entries[1][0] <= now:
            self._entries.popleft()
        due, state = self._entries[0]
        if stop.wait(min(max(0.0, due - now), patience_s)) or due - now > patience_s:
            return None
        self._entries.popleft()
        return state.at(time.monotonic_ns())


def play(take: Take, stop: threading.Event | None = None) -> Iterator[HeadState]:
    """A `Playback` of all of ``take``, or until ``stop`` is set."""
    playback, stop = Playback(take), stop or threading.Event()
    while not playback.over and (state := playback.next(stop)) is not None:
        yield state


class TakeDriver(Inlet):
    """Plays ``take`` from `start` to `stop`, over and over; the face of ``person`` (a `fingerprint`).

    At least one of its states is valid.
    """

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
        self._playback: Playback | None = None
        self._last: HeadState | None = None  # what it showed last, and when it began to play, the time before
        self._end: HeadState | None = None

    def _round(self) -> None:
        if self._playback is None or self._playback.over:
            self._playback, self._end = Playback(self._take), self._last
        state = self._playback.next(self.worker.stop, WAIT_S)
        if state is None:
            return
        seam = self._playback.elapsed / SEAM_S
        if self._end is not None and seam < 1.0:
            state = blend(self._end, state, smoothstep(seam)).at(state.t_capture_ns)
        self._last = state
        self._show(state, self.counts["taken"], now_ns(), self._person)

"""Playback of a take (recorded head states): once in real time by the capture times, or in a loop as a driver."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import HeadState, Take
from telepresence.drivers.receiver import StateReceiver, StateTransfer
from telepresence.drivers.state_blend import blend_states
from telepresence.runtime.clock import now_ns

SEAM_S: Final = 0.4
"""Duration of the transition from the end of a looped take to its start, in seconds."""
WAIT_S: Final = 0.5
"""Maximum time in seconds that one round of `TakeDriver` waits for the next state."""


def take_schedule(take: Take) -> list[tuple[float, HeadState]]:
    """(Time, state) of each valid frame of a take; times are in seconds after the first frame, by capture time.

    If the capture times do not increase strictly, times are computed from the frame rate.
    """
    times = [state.t_capture_ns for state in take.states]
    if any(later <= earlier for earlier, later in pairwise(times)):
        times = [round(index * 1e9 / take.fps) for index in range(len(times))]
    return [
        ((stamp - times[0]) / 1e9, state)
        for stamp, state, valid in zip(times, take.states, take.valid, strict=True)
        if valid
    ]


class TakePlayback:
    """Real-time playback of the valid states of a take, which starts on creation.

    The capture time of each state is replaced by the monotonic time at which it is returned.  States are skipped when a
    later one is already due, so that a slow consumer gets current states.
    """

    def __init__(self, take: Take) -> None:
        self._entries = deque(take_schedule(take))
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since playback began."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Whether the last state was returned; `next` must not be called then."""
        return not self._entries

    def next(self, stop: threading.Event, patience_s: float = threading.TIMEOUT_MAX) -> HeadState | None:
        """Wait for the next state; None if it is not due within ``patience_s`` or ``stop`` is set meanwhile."""
        now = self.elapsed
        while len(self._entries) > 1 and self._entries[1][0] <= now:
            self._entries.popleft()
        due, state = self._entries[0]
        if stop.wait(min(max(0.0, due - now), patience_s)) or due - now > patience_s:
            return None
        self._entries.popleft()
        return state.at(time.monotonic_ns())


def play_take(take: Take, stop: threading.Event | None = None) -> Iterator[HeadState]:
    """Iterate over the states of ``take`` in real time, until the end or until ``stop`` is set."""
    playback, stop = TakePlayback(take), stop or threading.Event()
    while not playback.over and (state := playback.next(stop)) is not None:
        yield state


class TakeDriver(StateReceiver):
    """Driver that plays ``take`` in a loop between `start` and `stop`.

    ``fingerprint`` is the fingerprint of its subject.  At least one state of the take must be valid.
    """

    def __init__(
        self,
        take: Take,
        fingerprint: str,
        *,
        on_accepted: Callable[[], None] = lambda: None,
        transfer: StateTransfer = lambda state, _fingerprint: state,
    ) -> None:
        super().__init__("take", on_refused=lambda _text: None, on_accepted=on_accepted, transfer=transfer)
        self._take, self._fingerprint = take, fingerprint
        self._playback: TakePlayback | None = None
        self._last: HeadState | None = None  # state displayed last
        self._end: HeadState | None = None  # last state of the previous round

    def _round(self) -> None:
        if self._playback is None or self._playback.over:
            self._playback, self._end = TakePlayback(self._take), self._last
        state = self._playback.next(self.worker.stop, WAIT_S)
        if state is None:
            return
        seam = self._playback.elapsed / SEAM_S
        if self._end is not None and seam < 1.0:
            state = blend_states(self._end, state, smoothstep(seam)).at(state.t_capture_ns)
        self._last = state
        self._accept(state, self.counts["accepted"], now_ns(), self._fingerprint)

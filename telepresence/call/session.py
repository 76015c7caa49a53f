"""What the daemon is doing with the person before the camera: a pure function of (session, facts, now).

    waiting -> calibrating -> learning -> live          the ladder, climbed by what is known of the face
       any but waiting -> lost -> idle                  the face is gone; its return resumes the ladder

Nothing here sleeps, reads a clock or holds a lock, so every transition is testable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

LOST_AFTER_S: Final = 0.7
"""Seconds without a face until it counts as lost: longer than a missed detection, shorter than a glance away."""

IDLE_AFTER_S: Final = 30.0
"""Seconds without a face until nobody is expected back at once."""

LIVE_GAIN_DB: Final = 1.0
"""The avatar is live once it beats the coloured mesh by this much on frames it never learned from."""

LIVE_DB: Final = 18.0
"""... and is no worse than this: a bald mesh of somebody with hair is beaten by a haze of their size."""


class State(StrEnum):
    """The states of a session; their values are what `/status` says."""

    WAITING = "waiting"  # no face was seen yet
    CALIBRATING = "calibrating"  # a face is there, its identity is being measured
    LEARNING = "learning"  # the avatar learns and is not good enough yet
    LIVE = "live"  # the avatar is better than the coloured mesh on frames it never saw
    LOST = "lost"  # the face is gone
    IDLE = "idle"  # the face has been gone for long


AWAY: Final = frozenset({State.LOST, State.IDLE})


@dataclass(frozen=True)
class Facts:
    """What is known at one moment.

    ``face``: the newest camera frame was tracked.  ``calibrated``: the identity is known.  ``gain_db``: PSNR of
    the avatar minus that of the coloured mesh on held-back frames, ``likeness_db`` that of the avatar, None before
    the first measurement, the latter also for an avatar of an earlier call.
    ``driven``: parameters from elsewhere (ZeroMQ, a take) move the face, so that no camera needs to see one.
    """

    face: bool = False
    calibrated: bool = False
    gain_db: float | None = None
    likeness_db: float | None = None
    driven: bool = False


@dataclass(frozen=True)
class Session:
    """A state, the monotonic second at which it began, and when a face was last there (None: never)."""

    state: State = State.WAITING
    since: float = 0.0
    last_face: float | None = None
    live: bool = False

    def advance(self, facts: Facts, now: float) -> Session:
        """The session at ``now`` (monotonic seconds), given the facts of that moment.

        The ladder never skips back for a lost face: who returns is where they were.  A live avatar stays live
        while it is not worse than the mesh, so that the state does not flicker around the threshold.
        """
        present = facts.face or facts.driven
        last_face = now if present else self.last_face
        live = self.live
        if facts.gain_db is not None:
            like = live or facts.likeness_db is None or facts.likeness_db >= LIVE_DB
            live = like and facts.gain_db >= (0.0 if live else LIVE_GAIN_DB)
        state = self._next(facts, last_face, live, now)
        since = self.since if state is self.state else now
        return replace(self, state=state, since=since, last_face=last_face, live=live)

    def _next(self, facts: Facts, last_face: float | None, live: bool, now: float) -> State:
        if last_face is None:
            return State.WAITING
        absent = now - last_face
        if absent >= IDLE_AFTER_S:
            return State.IDLE
        if absent >= LOST_AFTER_S:
            return State.LOST
        if absent > 0.0 and self.state in AWAY:
            return self.state
        if not facts.calibrated:
            return State.CALIBRATING
        return State.LIVE if live else State.LEARNING

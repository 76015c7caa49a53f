"""Session of a subject in a call: a pure state machine whose next state depends on (session, facts, now) alone.

    waiting -> calibrating -> learning -> live          while a face is there
       any but waiting -> lost -> idle                  while the face is gone; its return resumes the state before

Nothing here sleeps, reads a clock or holds a lock, so that every transition can be tested.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

LOST_AFTER_S: Final = 0.7
"""Seconds without a face after which the session is lost: longer than one or two missed detections."""

IDLE_AFTER_S: Final = 30.0
"""Seconds without a face after which the session is idle."""

LIVE_GAIN_DB: Final = 1.0
"""PSNR gain in dB over the coloured mesh, on held-out frames, from which the avatar is live."""

LIVE_DB: Final = 18.0
"""Minimum PSNR in dB on held-out frames for an avatar to become live: even a blurred head beats a mesh without hair."""


class SessionState(StrEnum):
    """State of a session; the values are those of ``state`` in `/status`."""

    WAITING = "waiting"  # no face has been seen yet
    CALIBRATING = "calibrating"  # a face is there, its shape is being measured
    LEARNING = "learning"  # the avatar is not good enough yet
    LIVE = "live"  # the avatar is better than the coloured mesh on held-back frames
    LOST = "lost"  # the face is gone
    IDLE = "idle"  # the face has been gone for long


AWAY: Final = frozenset({SessionState.LOST, SessionState.IDLE})
"""States of a session whose face is gone."""


@dataclass(frozen=True)
class Facts:
    """Facts about a subject at one moment.

    Attributes:
        face: whether the newest tracked frame shows the subject's face.
        calibrated: whether the subject's shape is known, so that the subject has a learner.
        gain_db: PSNR in dB of the avatar minus that of the coloured mesh, on held-out frames; None until it is known.
        likeness_db: PSNR in dB of the avatar on held-out frames; None before it is measured, and for an avatar loaded
            from an earlier call.
        driven: whether received head states (ZeroMQ, a take) drive the avatar, so that no face needs to be tracked.
    """

    face: bool = False
    calibrated: bool = False
    gain_db: float | None = None
    likeness_db: float | None = None
    driven: bool = False


@dataclass(frozen=True)
class Session:
    """State of the call for one subject.

    Attributes:
        state: current state of the session.
        since: monotonic second at which the state began.
        last_face: monotonic second at which a face was present last; None if there never was one.
        live: whether the avatar is good enough to be displayed.
    """

    state: SessionState = SessionState.WAITING
    since: float = 0.0
    last_face: float | None = None
    live: bool = False

    def advance(self, facts: Facts, now: float) -> Session:
        """The next session, at ``now`` (monotonic seconds), given the facts of that moment.

        A face that comes back resumes the state before it was lost.  A live avatar stays live while its PSNR is
        not below that of the mesh (hysteresis).
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

    def _next(self, facts: Facts, last_face: float | None, live: bool, now: float) -> SessionState:
        if last_face is None:
            return SessionState.WAITING
        absent = now - last_face
        if absent >= IDLE_AFTER_S:
            return SessionState.IDLE
        if absent >= LOST_AFTER_S:
            return SessionState.LOST
        if absent > 0.0 and self.state in AWAY:
            return self.state
        if not facts.calibrated:
            return SessionState.CALIBRATING
        return SessionState.LIVE if live else SessionState.LEARNING

"""Who sits before one camera, one after the other; each has an avatar, and no two share one."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.errors import UserError
from telepresence.call.session import Session
from telepresence.learning.budget import Budget
from telepresence.learning.identity import Acquaintance, Sighting, Standing
from telepresence.runtime.frames import Pose

if TYPE_CHECKING:
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from telepresence.learning.learner import Learner
    from telepresence.runtime.frames import Glimpse, TrackedFrame
    from telepresence.tracking.proportions import Known
    from telepresence.tracking.tracker import Tracker

log = logging.getLogger("telepresence")

RETURN_MM: Final = 1.0
"""Whose calibrations differ by less than this may be the same person: it is looked at whether they are."""
EVENTS: Final = 16
"""How many of the newest events are remembered."""


@dataclass(frozen=True)
class Event:
    """Something that people want to know of, at monotonic second ``at``; ``kind`` names it for machines."""

    at: float
    kind: str
    text: str


class Sitter:
    """Whose face it is.

    The tracking thread sets ``pose``, ``glimpse``, ``acquaintance`` and ``known`` (how to track them again), the
    training thread ``learner`` and, for the time before there is one, ``mesh``; the supervisor ``session`` and
    ``budget``.  ``others`` are those that it was found not to be since the face came.
    """

    def __init__(self, path: Path, acquaintance: Acquaintance, others: tuple[Sitter, ...] = ()) -> None:
        """The avatar belongs at ``path``."""
        self.path, self.acquaintance, self.others = path, acquaintance, others
        self.session = Session()
        self.budget = Budget()
        self.learner: Learner | None = None
        self.pose: Pose | None = None
        self.glimpse: Glimpse | None = None
        self.mesh: ColouredMesh | None = None
        self.known: Known | None = None
        self.compared = False  # with those who were there before


class Sitters:
    """Everybody who was before one camera; ``current`` is who is taken to be there now.

    `meet` belongs to the tracking thread, `answer` may be called on any, and both fields are replaced whole.

    Attributes:
        away: those whose avatars were put away in this call.
        events: what happened, oldest first.
    """

    def __init__(self, path: Path, stored: bool) -> None:
        """``stored``: there is an avatar at ``path``, and whoever comes first need not be its person."""
        self.current = Sitter(path, Acquaintance.stored() if stored else Acquaintance())
        self.away: tuple[Sitter, ...] = ()
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self._first = path
        self._stored = stored
        self._answer: bool | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody is asked if this is the person of the avatar."""
        return self.current.acquaintance.standing is Standing.ASKING

    def answer(self, same: bool) -> None:
        """It is the ``same`` person, or it is not.  UserError if nobody asked."""
        if not self.asked:
            raise UserError("nobody asks who this is")
        self._answer = same

    def meet(self, tracker: Tracker, tracked: TrackedFrame, now: float) -> Sitter | None:
        """Who was tracked at second ``now``; None if somebody else's turn begins, and what was tracked is void."""
        sitter = self.current
        if tracked.misfit is not None and not sitter.compared:
            sitter.compared = True
            if self._returns(tracker, sitter):
                return None
            sitter.others = ()
            if sitter.known is None and self.away:
                self.note("new avatar", f"somebody else is there: a new avatar was begun, {sitter.path}")
        learner, pose = sitter.learner, tracked.pose
        answer, self._answer = self._answer, None
        seen = Sighting(
            tracked.misfit,
            pose.state.translation if pose is not None else None,
            learner.worse_db if learner is not None else None,
            answer,
        )
        before, sitter.acquaintance = sitter.acquaintance, sitter.acquaintance.after(seen, now)
        standing = sitter.acquaintance.standing
        if standing is not before.standing:
            self._tell(sitter, standing, seen)
        if standing is Standing.OTHER:
            self._begin(tracker, sitter)
            return None
        tracker.trusts = sitter.acquaintance.settled
        return sitter

    def note(self, kind: str, text: str) -> None:
        """Remember an event."""
        self.events.append(Event(time.monotonic(), kind, text))
        log.info("%s", text, extra={"event": kind, "stage": "track"})

    def _begin(self, tracker: Tracker, before: Sitter) -> None:
        """Somebody else is there than ``before``, who is put away."""
        from telepresence.tracking.proportions import Known

        if tracker.shape is not None:
            before.known = Known(tracker.shape, tracker.calibration)
        self.away = (*(each for each in self.away if each is not before), before)
        sitter = Sitter(self._beside(), Acquaintance(), (*before.others, before))
        tracker.recalibrate()
        tracker.trusts = True
        self.current = sitter

    def _returns(self, tracker: Tracker, sitter: Sitter) -> bool:
        """Whether ``sitter``, who was just calibrated, looks like one of those who were there before."""
        nearest, least = None, RETURN_MM
        for each in self.away:
            if each in sitter.others or each.known is None:
                continue
            misfit = tracker.misfit_of(each.known)
            mm = float(np.sqrt(np.square(misfit).sum(1).mean())) if misfit is not None else np.inf
            if mm < least:
                nearest, least = each, mm
        if nearest is None:
            return False
        nearest.acquaintance, nearest.others = Acquaintance.stored(), sitter.others
        nearest.session, nearest.pose, nearest.glimpse, nearest.mesh = Session(), None, None, None
        tracker.recalibrate(nearest.known)
        tracker.trusts = False
        self.current = nearest
        return True

    def _beside(self) -> Path:
        """A place for another avatar that nobody has."""
        taken = {each.path for each in (*self.away, self.current)}
        number = 2
        while (path := self._first.with_name(f"{self._first.name}-{number}")).exists() or path in taken:
            number += 1
        return path

    def _tell(self, sitter: Sitter, standing: Standing, seen: Sighting) -> None:
        mm, worse = sitter.acquaintance.mm, seen.worse_db
        log.info(
            "the face is %s (misfit %s mm, %s dB worse than usual)",
            standing,
            "?" if mm is None else f"{mm:.2f}",
            "?" if worse is None else f"{worse:.1f}",
            extra={"event": "identity", "stage": "track", "fields": {"standing": standing, "misfit_mm": mm}},
        )
        if standing is Standing.KNOWN:
            sitter.others = ()
        if standing is Standing.ASKING:
            self.note("question", "it is not sure whose face this is: learning waits for an answer")
        elif standing is Standing.KNOWN and sitter in self.away:
            self.away = tuple(each for each in self.away if each is not sitter)
            self.note("person back", f"somebody known is back: their avatar is taken up again, {sitter.path}")

"""How much to learn, and whether at all: pure functions of (budget, wants, now).

The display comes first: it has its own cores or a stream of higher priority, and on a GPU a step draws fewer rays
while a picture takes long (`telepresence.runtime.scheduling.ray_part`).  What is left is for learning, in the part
``run.train_share``; and learning rests while there is nothing to be learned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

NEWS_S: Final = 20.0
"""Seconds without a picture that shows anything new, after which there may be nothing more to learn ..."""
FLAT_S: Final = 20.0
"""... if the likeness has not risen for so long either ..."""
FLAT_DB: Final = 0.05
"""... by at least so much."""


class LearningMode(StrEnum):
    """What learning does; the values are what `/status` says."""

    WAITING = "waiting"  # it is not known yet who is there
    LEARNING = "learning"
    RESTING = "resting"  # nothing new is to be learned; it goes on as soon as there is
    FROZEN = "frozen"  # it was asked not to
    FAILED = "failed"  # it cannot; the last weights are shown


@dataclass(frozen=True)
class BudgetInputs:
    """What there is to learn at one moment.

    ``known``: there is an avatar to learn.  ``away``: nobody has been there for long.  ``news``: the monotonic
    second at which a picture was taken that showed something new; None if none ever was.  ``likeness_db``: PSNR on
    held-back pictures, None before it is measured.  ``failure``: why learning cannot go on.
    """

    known: bool = False
    away: bool = False
    news: float | None = None
    likeness_db: float | None = None
    frozen: bool = False
    failure: str | None = None


@dataclass(frozen=True)
class LearningBudget:
    """What learning does and why, since when (monotonic seconds), and when the likeness last rose, and to what."""

    mode: LearningMode = LearningMode.WAITING
    why: str = "nobody is known yet"
    since: float = 0.0
    risen: float = 0.0
    best_db: float | None = None

    def after(self, wants: BudgetInputs, now: float) -> LearningBudget:
        """The budget at ``now``, given what is known at that moment."""
        mode, why = self._mode(wants, now)
        woken = self.mode is not LearningMode.LEARNING and mode is LearningMode.LEARNING
        budget = replace(self, mode=mode, why=why, since=self.since if mode is self.mode else now)
        likeness = wants.likeness_db
        if woken:  # whatever it was like before: there is something new to be like
            return replace(budget, risen=now, best_db=likeness)
        if likeness is not None and (self.best_db is None or likeness >= self.best_db + FLAT_DB):
            return replace(budget, risen=now, best_db=likeness)
        return budget

    def _mode(self, wants: BudgetInputs, now: float) -> tuple[LearningMode, str]:
        if wants.failure is not None:
            return LearningMode.FAILED, wants.failure
        if not wants.known:
            return LearningMode.WAITING, "nobody is known yet"
        if wants.frozen:
            return LearningMode.FROZEN, "it was asked for"
        if wants.away:
            return LearningMode.RESTING, "nobody is there"
        stale = wants.news is None or now - wants.news > NEWS_S
        flat = self.mode is LearningMode.RESTING or now - self.risen > FLAT_S
        if stale and flat and wants.likeness_db is not None:
            return LearningMode.RESTING, "nothing new is to be learned"
        return LearningMode.LEARNING, "there is something to learn"

"""Learning budget of an avatar: the decision whether it is trained now, as a pure function of (budget, inputs, now).

The display has priority: it has its own cores or a CUDA stream of higher priority, and on a GPU a training step draws
fewer rays while rendering takes long (`telepresence.runtime.scheduling.ray_part`).  Training gets at most the fraction
``run.train_share`` of the remaining time, and rests while there are no novel frames to train on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

NOVELTY_TIMEOUT_S: Final = 20.0
"""Seconds without a novel frame (one that is no near-duplicate) after which training may rest."""
PLATEAU_S: Final = 20.0
"""Seconds without a rise of the PSNR on held-back frames after which training may rest."""
PLATEAU_DB: Final = 0.05
"""Minimum rise of the PSNR (dB) on held-back frames that counts as progress."""


class LearningMode(StrEnum):
    """State of training; the values are those of ``training.state`` in `/status`."""

    WAITING = "waiting"  # there is no avatar yet
    LEARNING = "learning"
    RESTING = "resting"  # nothing new to learn; continues with the next novel frame
    FROZEN = "frozen"  # paused by the user, or for the whole call by --freeze
    FAILED = "failed"  # training cannot continue; the last weights are displayed


@dataclass(frozen=True)
class BudgetInputs:
    """Inputs of the decision whether to train.

    Attributes:
        has_avatar: whether there is an avatar to train.
        absent: whether no face was seen yet, or none for a long time.
        last_novel_at: monotonic second of the last novel frame; None before the first.
        likeness_db: PSNR (dB) of the avatar on held-back frames; None before it is measured.
        frozen: whether training is paused by the user or disabled for the call.
        failure: message of the error that ended training; None without one.
    """

    has_avatar: bool = False
    absent: bool = False
    last_novel_at: float | None = None
    likeness_db: float | None = None
    frozen: bool = False
    failure: str | None = None


@dataclass(frozen=True)
class LearningBudget:
    """Decision whether an avatar is trained, with the reason.

    Attributes:
        mode: state of training.
        reason: readable message that explains the mode.
        since: monotonic second of the last change of mode.
        risen: monotonic second at which the PSNR on held-back frames last rose by `PLATEAU_DB`.
        best_db: highest such PSNR (dB) since training last resumed; None before it is measured.
    """

    mode: LearningMode = LearningMode.WAITING
    reason: str = "no subject is known yet"
    since: float = 0.0
    risen: float = 0.0
    best_db: float | None = None

    def after(self, inputs: BudgetInputs, now: float) -> LearningBudget:
        """The next budget, at monotonic second ``now``, given the inputs of that moment."""
        mode, reason = self._mode(inputs, now)
        resumed = self.mode is not LearningMode.LEARNING and mode is LearningMode.LEARNING
        budget = replace(self, mode=mode, reason=reason, since=self.since if mode is self.mode else now)
        likeness = inputs.likeness_db
        if resumed:  # the earlier maximum was measured on other frames
            return replace(budget, risen=now, best_db=likeness)
        if likeness is not None and (self.best_db is None or likeness >= self.best_db + PLATEAU_DB):
            return replace(budget, risen=now, best_db=likeness)
        return budget

    def _mode(self, inputs: BudgetInputs, now: float) -> tuple[LearningMode, str]:
        if inputs.failure is not None:
            return LearningMode.FAILED, inputs.failure
        if not inputs.has_avatar:
            return LearningMode.WAITING, "no subject is known yet"
        if inputs.frozen:
            return LearningMode.FROZEN, "training is frozen"
        if inputs.absent:
            return LearningMode.RESTING, "no face is in view"
        stale = inputs.last_novel_at is None or now - inputs.last_novel_at > NOVELTY_TIMEOUT_S
        flat = self.mode is LearningMode.RESTING or now - self.risen > PLATEAU_S
        if stale and flat and inputs.likeness_db is not None:
            return LearningMode.RESTING, "there is nothing new to learn"
        return LearningMode.LEARNING, "there are new frames to learn from"

"""Memory budget of the whole process: which part of it the replay buffer may use, and its application in a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from telepresence.runtime.hardware import resident_bytes
from telepresence.runtime.memory import release_heap
from telepresence.runtime.ownership import owned_by

if TYPE_CHECKING:
    from telepresence.learning.learner import Learner
    from telepresence.runtime.telemetry import Telemetry

RESERVE: Final = 100_000_000
"""Bytes of the process budget that replay leaves free, for what a training step or saving uses for a moment."""
HYSTERESIS: Final = 80_000_000
"""Bytes by which memory in use must fall before replay that was limited may grow again."""


def replay_budget(limit: int, resident: int, held: int, budget: int, ceiling: int) -> int:
    """The memory budget of replay, in bytes, that keeps the process within ``limit`` bytes.

    Within `HYSTERESIS` of what may be used the budget can only fall, so that a process near its limit does not evict
    and add frames in turn.

    Args:
        limit: memory budget of the process, bytes. resident: its resident memory now, bytes.
        held: memory of the frames in replay now, bytes. budget: present budget of replay, bytes.
        ceiling: largest budget of replay (``learn.replay_mb``), bytes.
    """
    free = limit - RESERVE - resident
    allowed = min(ceiling, max(0, held + free))
    near = free < HYSTERESIS
    return min(budget, allowed) if near else max(budget, allowed)


@owned_by("train")
class ReplayLimiter:
    """Limits the replay of the current learner so that this process keeps its memory budget."""

    def __init__(self, limit_mb: int, telemetry: Telemetry) -> None:
        """``limit_mb``: memory budget of the process, 10^6 bytes; 0: none."""
        self._limit, self._telemetry = limit_mb * 1_000_000, telemetry
        self._measured: object = None
        self._learner: Learner | None = None
        self._budget = 0

    def update(self, learner: Learner | None) -> None:
        """Apply the rule `replay_budget` once for every measurement of the resident memory."""
        measured = self._telemetry.memory
        if not self._limit or learner is None or measured is self._measured:
            return
        self._measured = measured
        resident = resident_bytes()
        if resident > self._limit - RESERVE:
            release_heap()  # free memory that glibc holds is no reason to evict a frame
            resident = resident_bytes()
        held = learner.trainer.replay.composition.bytes
        ceiling = learner.trainer.config.replay_mb << 20
        if learner is not self._learner:
            self._learner, self._budget = learner, ceiling
        budget = replay_budget(self._limit, resident, held, self._budget, ceiling)
        if budget == self._budget:
            return
        self._budget = budget
        learner.trainer.set_replay_budget(budget)
        if budget < held:
            release_heap()

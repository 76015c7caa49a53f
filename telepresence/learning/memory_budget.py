"""Memory budget of the whole process: which part of it the replay buffer may use, and its application in a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from telepresence.runtime.memory import release_heap
from telepresence.runtime.ownership import owned_by

if TYPE_CHECKING:
    from telepresence.learning.learner import Learner
    from telepresence.runtime.telemetry import Telemetry

FULL: Final = 0.94
"""Share of the process budget up to which replay may grow; the rest is for peaks of a second, such as saving."""
AMPLE: Final = 0.86
"""Share of the process budget below which replay may grow again after it was limited."""


def replay_budget(limit: int, resident: int, held: int, budget: int, ceiling: int) -> int:
    """The memory budget of replay, in bytes, that keeps the process within ``limit`` bytes.

    Between `AMPLE` and `FULL` of ``limit`` the budget can only fall, so that a process near its limit does not evict
    and add frames in turn.

    Args:
        limit: memory budget of the process, bytes. resident: its resident memory now, bytes.
        held: memory of the frames in replay now, bytes. budget: present budget of replay, bytes.
        ceiling: largest budget of replay (``learn.replay_mb``), bytes.
    """
    allowed = min(ceiling, max(0, held + round(FULL * limit) - resident))
    near = resident > AMPLE * limit
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
        resident, held = measured["rss_mb"], learner.trainer.replay.composition.bytes
        if resident is None:
            return
        ceiling = learner.trainer.config.replay_mb << 20
        if learner is not self._learner:
            self._learner, self._budget = learner, ceiling
        budget = replay_budget(self._limit, round(resident * 1e6), held, self._budget, ceiling)
        if budget == self._budget:
            return
        self._budget = budget
        learner.trainer.set_replay_budget(budget)
        if budget < held:
            release_heap()

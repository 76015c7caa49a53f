"""Memory limit of the daemon on a CPU, enforced by evicting frames from the replay buffer of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from telepresence.runtime.hardware import resident_bytes
from telepresence.runtime.memory import release_heap
from telepresence.runtime.ownership import owned_by
from telepresence.runtime.rate_limiter import RateLimiter

if TYPE_CHECKING:
    from telepresence.learning.learner import Learner

RESERVE: Final = 100_000_000
"""Bytes of the memory limit that are reserved for the temporary memory of a training step or of saving."""
HYSTERESIS: Final = 80_000_000
"""Free bytes, beyond `RESERVE`, that are needed before the budget of the replay buffer may grow again."""


def replay_budget(limit: int, resident: int, held: int, budget: int, ceiling: int) -> int:
    """Memory budget of the replay buffer, in bytes, that keeps the process within ``limit`` bytes.

    While fewer than `HYSTERESIS` bytes are free the budget can only fall, so that a process near its limit does not
    alternately evict and add frames.

    Args:
        limit: memory budget of the process, in bytes.
        resident: resident memory of the process now, in bytes.
        held: memory of the frames in the replay buffer now, in bytes.
        budget: present budget of the replay buffer, in bytes.
        ceiling: largest budget of the replay buffer (``learn.replay_mb``), in bytes.
    """
    free = limit - RESERVE - resident
    allowed = min(ceiling, max(0, held + free))
    near = free < HYSTERESIS
    return min(budget, allowed) if near else max(budget, allowed)


@owned_by("train")
class ReplayLimiter:
    """Limits the replay buffer of the current learner so that this process stays within its memory budget."""

    def __init__(self, limit_mb: int) -> None:
        """``limit_mb`` is the memory budget of the process in units of 10^6 bytes; 0 means no limit."""
        self._limit = limit_mb * 1_000_000
        self._measurements = RateLimiter(1.0, 1.0)
        self._learner: Learner | None = None
        self._budget = 0

    def update(self, learner: Learner | None, now: float) -> None:
        """Measure the resident memory and set the replay budget by `replay_budget`, at most once per second.

        ``now`` is in monotonic seconds; without a ``learner`` nothing is done.
        """
        if not self._limit or learner is None or not self._measurements.acquire(now):
            return
        resident = resident_bytes()
        if resident > self._limit - RESERVE:
            release_heap()  # free memory that glibc holds is no reason to evict a frame
            resident = resident_bytes()
        held = learner.trainer.replay.composition.bytes
        ceiling = learner.trainer.config.replay_mb << 20
        if learner is not self._learner:
            self._learner, self._budget = learner, ceiling
        budget = replay_budget(self._limit, resident, held, self._budget, ceiling)
        if budget != self._budget:
            self._budget = budget
            learner.trainer.set_replay_budget(budget)

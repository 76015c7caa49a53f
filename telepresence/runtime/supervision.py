"""The stages of the daemon: their threads, whether they live, and what happens when they do not.

What happens is in `policy.POLICIES`; docs/supervision.md has it in words.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from telepresence.runtime.policy import JUMP_S, POLICIES, Health, Then, is_device_error, one_line
from telepresence.runtime.worker import Worker, limit_torch_threads

log = logging.getLogger("telepresence")

JOIN_S: Final = 10.0
WELL_S: Final = 10.0
"""A stage that has worked for so long after a failure is well again."""
HANDOVER_S: Final = 5e-4
"""A stage that computes in Python lets the others have their turn after so long.  A picture passes through four of
them, and Python's own 5 ms a time would be seen."""


class Supervisor:
    """Starts, watches and ends the stages.

    ``note(stage, text)`` hears of every failure, ``well(stage)`` once it has worked again for `WELL_S`, and
    ``die(text)`` of the failure that ends the call.  `adopt`, `begin`, `stop` and `overdue` are for the main thread,
    `watch` for the stage ``supervise``; the rest may be called on any.
    """

    def __init__(
        self, note: Callable[[str, str], object], well: Callable[[str], None], die: Callable[[str], None]
    ) -> None:
        self._note, self._well, self._die = note, well, die
        self._ailing: dict[str, float] = {}  # when a stage failed last, until it is well again
        self._workers: dict[str, Worker] = {}
        self._watched = time.monotonic()
        sys.setswitchinterval(HANDOVER_S)

    def begin(
        self,
        stage: str,
        work: Callable[[], None],
        *,
        mend: Callable[[], None] | None = None,
        threads: int = 1,
        nice: int = 0,
    ) -> None:
        """Run ``work`` over and over in a thread of its own, which may use ``threads`` cores.

        ``mend`` is called there before each restart.
        """
        setup = partial(limit_torch_threads, threads)
        worker = Worker(stage, work, policy=POLICIES[stage], setup=setup, mend=mend, nice=nice)
        self.adopt(worker)
        self._watched = time.monotonic()
        worker.start()

    def adopt(self, worker: Worker) -> None:
        """Watch and end a worker that somebody else starts."""
        self._workers[worker.name] = worker
        worker.failed, worker.fatal = self._failed, self._fatal

    def watch(self, now: float) -> None:
        """Deal with the stages that hang; call it several times a second."""
        gap, self._watched = now - self._watched, now
        workers = tuple(self._workers.values())
        if gap > JUMP_S:
            log.warning(
                "nothing was watched for %.0f s: the machine slept or was very busy",
                gap,
                extra={"event": "clock_jump", "stage": "supervise", "fields": {"seconds": round(gap, 1)}},
            )
            for worker in workers:
                worker.heartbeat = max(worker.heartbeat, now)
            return
        for worker in workers:
            if worker.hangs(now):
                self._hangs(worker)
            elif now - self._ailing.get(worker.name, now) > WELL_S and worker.well:
                del self._ailing[worker.name]
                self._well(worker.name)

    def overdue(self, now: float) -> None:
        """Deal with the watching itself, should it hang."""
        watcher = self._workers.get("supervise")
        if watcher is not None and watcher.hangs(now):
            self._hangs(watcher)

    def rounds(self, stages: Iterable[str]) -> float:
        """The moment (monotonic seconds) since when each of ``stages`` has finished a round, or was left behind."""
        beats = [self._workers[stage].heartbeat for stage in stages if not self._workers[stage].stop.is_set()]
        return min(beats, default=time.monotonic())

    def health(self, now: float) -> dict[str, Health]:
        """How each stage is."""
        return {stage: worker.health(now) for stage, worker in tuple(self._workers.items())}

    def stop(self) -> frozenset[str]:
        """End every stage; those that are busy still."""
        for worker in self._workers.values():
            worker.stop.set()
        return frozenset(stage for stage, worker in self._workers.items() if not worker.join(JOIN_S))

    def _failed(self, stage: str, error: Exception) -> None:
        self._ailing[stage] = time.monotonic()
        self._note(stage, one_line(error))

    def _fatal(self, stage: str, error: Exception) -> None:
        if is_device_error(error):
            self._die(f"the GPU is lost to this process ({one_line(error)}); start again to go on")
        else:
            self._die(f"stage {stage} failed again and again: {one_line(error)}")

    def _hangs(self, worker: Worker) -> None:
        policy = worker.policy
        text = f"no sign of life for {policy.silent_s:.0f} s"
        worker.leave(text)
        log.error("stage %s hangs: %s", worker.name, text, extra={"event": "stage_hangs", "stage": worker.name})
        self._note(worker.name, text)
        if policy.hung is Then.STOP:
            self._die(f"stage {worker.name} hangs: {text}")

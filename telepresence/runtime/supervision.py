"""Supervision of the daemon's stages: starts their threads, detects those that fail or hang, and ends them.

What follows a failure is in `telepresence.runtime.failure_policy.POLICIES`; docs/supervision.md explains it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Final

from telepresence.runtime.failure_policy import JUMP_S, POLICIES, Fallback, Health, is_device_error, one_line
from telepresence.runtime.ownership import any_thread, called_by, owned_by
from telepresence.runtime.worker import Worker, limit_torch_threads

log = logging.getLogger("telepresence")

JOIN_S: Final = 10.0
"""Seconds to wait for the end of one stage."""
WELL_S: Final = 10.0
"""Seconds of work without a failure after which the errors of a stage are removed from `/status`."""
SWITCH_S: Final = 5e-4
"""Switch interval of Python threads in seconds: a frame passes through four threads, and Python's 5 ms each would be
visible."""


@owned_by("main")
class Supervisor:
    """Starts, watches and ends the stages.

    `adopt`, `begin`, `stop` and `overdue` are for the main thread, `watch` for the stage ``supervise``; the other
    methods may be called from any thread.
    """

    def __init__(
        self, note: Callable[[str, str], object], well: Callable[[str], None], die: Callable[[str], None]
    ) -> None:
        """Called from any thread: ``note(stage, error)`` at every failure, ``well(stage)`` once the stage has worked
        for `WELL_S` again, ``die(error)`` if the call must end."""
        self._note, self._well, self._die = note, well, die
        self._failures: SimpleQueue[tuple[str, float]] = SimpleQueue()  # stage and time, from the stages' threads
        self._failed_at: dict[str, float] = {}  # time of the last failure of each stage that is not well yet
        self._workers: dict[str, Worker] = {}
        self._watched = time.monotonic()
        sys.setswitchinterval(SWITCH_S)

    def begin(
        self,
        stage: str,
        work: Callable[[], None],
        *,
        mend: Callable[[], None] | None = None,
        threads: int = 1,
        nice: int = 0,
    ) -> None:
        """Call ``work`` over and over in a new thread named ``stage``, whose torch operations use ``threads`` cores.

        ``mend`` is called in that thread before each restart.
        """
        setup = partial(limit_torch_threads, threads)
        worker = Worker(stage, work, policy=POLICIES[stage], setup=setup, mend=mend, nice=nice)
        self.adopt(worker)
        self._watched = time.monotonic()
        worker.start()

    def adopt(self, worker: Worker) -> None:
        """Watch and end a worker that is started elsewhere."""
        self._workers[worker.name] = worker
        worker.failed, worker.fatal = self._failed, self._fatal

    @called_by("supervise")
    def watch(self, now: float) -> None:
        """Abandon stages that hang at monotonic second ``now``; call it several times per second."""
        gap, self._watched = now - self._watched, now
        workers = tuple(self._workers.values())
        if gap > JUMP_S:
            log.warning(
                "no stage was watched for %.0f s: the machine slept or was very busy",
                gap,
                extra={"event": "clock_jump", "stage": "supervise", "fields": {"seconds": round(gap, 1)}},
            )
            for worker in workers:
                worker.heartbeat = max(worker.heartbeat, now)
            return
        while not self._failures.empty():
            stage, at = self._failures.get()
            self._failed_at[stage] = at
        for worker in workers:
            if worker.hangs(now):
                self._abandon(worker)
            elif now - self._failed_at.get(worker.name, now) > WELL_S and worker.well:
                del self._failed_at[worker.name]
                self._well(worker.name)

    def overdue(self, now: float) -> None:
        """Abandon the stage ``supervise`` itself if it hangs at monotonic second ``now``."""
        watcher = self._workers.get("supervise")
        if watcher is not None and watcher.hangs(now):
            self._abandon(watcher)

    @any_thread
    def rounds(self, stages: Iterable[str]) -> float:
        """Monotonic second since which each of ``stages`` has finished a round, or was abandoned."""
        beats = [self._workers[stage].heartbeat for stage in stages if not self._workers[stage].stop.is_set()]
        return min(beats, default=time.monotonic())

    @any_thread
    def health(self, now: float) -> dict[str, Health]:
        """Health of each stage at monotonic second ``now``."""
        return {stage: worker.health(now) for stage, worker in tuple(self._workers.items())}

    def stop(self) -> frozenset[str]:
        """End every stage; returns the names of those that are still busy."""
        for worker in self._workers.values():
            worker.stop.set()
        return frozenset(stage for stage, worker in self._workers.items() if not worker.join(JOIN_S))

    def _failed(self, stage: str, error: Exception) -> None:
        self._failures.put((stage, time.monotonic()))
        self._note(stage, one_line(error))

    def _fatal(self, stage: str, error: Exception) -> None:
        if is_device_error(error):
            self._die(f"the GPU is lost to this process ({one_line(error)}); start the call again")
        else:
            self._die(f"stage {stage} failed again and again: {one_line(error)}")

    def _abandon(self, worker: Worker) -> None:
        """Give up the thread of a stage that hangs, and do what its policy says."""
        policy = worker.policy
        text = f"no round was finished for {policy.silent_s:.0f} s"
        worker.abandon(text)
        log.error("stage %s hangs: %s", worker.name, text, extra={"event": "stage_hangs", "stage": worker.name})
        self._note(worker.name, text)
        if policy.hung is Fallback.STOP:
            self._die(f"stage {worker.name} hangs: {text}")

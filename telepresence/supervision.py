"""The stages of the daemon: their threads, whether they live, and what happens when they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from telepresence.worker import Worker, limit_torch_threads

STALLED_S: Final = 60.0
"""Seconds without a finished round after which a stage is said to have stalled."""
JOIN_S: Final = 10.0


class Supervisor:
    """Starts, watches and ends the stages.

    ``note(stage, text)`` hears of every failure, ``die(text)`` of the one that ends the call.
    """

    def __init__(self, note: Callable[[str, str | None], None], die: Callable[[str], None]) -> None:
        self._note, self._die = note, die
        self._workers: dict[str, Worker] = {}

    def begin(self, stage: str, work: Callable[[], None], *, threads: int = 1, nice: int = 0) -> None:
        """Run ``work`` over and over in a thread of its own, which may use ``threads`` cores."""
        self._workers[stage] = worker = Worker(
            stage,
            work,
            setup=lambda: limit_torch_threads(threads),
            failed=self._failed,
            fatal=self._fatal,
            nice=nice,
        )
        worker.start()

    def watch(self, now: float) -> None:
        """Name the stages that hang."""
        for worker in self._workers.values():
            if worker.silent_for(now) > STALLED_S:
                self._note(worker.name, f"no sign of life for {STALLED_S:.0f} s")
                worker.heartbeat = now

    def rounds(self, stages: Iterable[str]) -> float:
        """The moment (monotonic seconds) since when each of ``stages`` has finished a round."""
        return min(self._workers[stage].heartbeat for stage in stages)

    def stop(self) -> bool:
        """End every stage; False if one is still busy."""
        for worker in self._workers.values():
            worker.stop.set()
        ended = [worker.join(JOIN_S) for worker in self._workers.values()]
        return all(ended)

    def _failed(self, stage: str, error: Exception) -> None:
        self._note(stage, f"{type(error).__name__}: {error}")

    def _fatal(self, stage: str, error: Exception) -> None:
        self._die(f"stage {stage} failed again and again: {type(error).__name__}: {error}")

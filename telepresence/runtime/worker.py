"""Worker thread that repeats a round of work, is supervised, and is restarted by a failure policy."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable

from telepresence.runtime.failure_policy import (
    HEALTHY_S,
    Condition,
    Fallback,
    Health,
    Policy,
    is_device_error,
    one_line,
)
from telepresence.runtime.ownership import ThreadRole, enter_role

log = logging.getLogger("telepresence")


class Worker:
    """Calls ``work`` over and over in a thread until it is stopped.

    A round that raises is reported to ``failed`` and tried again after the pauses of ``policy``.  When the pauses are
    used up and the policy says so, or when the GPU is lost, ``fatal`` is called and the thread ends.  The traceback of
    an error is logged once, until another error occurs.

    Attributes:
        stop: set to end the thread after its round.
        heartbeat: monotonic second at which the last round was finished.
        failed, fatal: callbacks (name, error) on the worker's thread; they may be replaced before the start.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], None],
        *,
        policy: Policy,
        failed: Callable[[str, Exception], None] = lambda _name, _error: None,
        fatal: Callable[[str, Exception], None] = lambda _name, _error: None,
        setup: Callable[[], None] | None = None,
        mend: Callable[[], None] | None = None,
        nice: int = 0,
        role: str | None = None,
    ) -> None:
        """``work`` does one round and returns within about a second, so that a stop is noticed.

        ``name`` is that of thread and stage, ``role`` the thread role (`telepresence.runtime.ownership`), by default
        the name.  ``setup`` is called in the thread before the first round, ``mend`` before each round after a failure.
        ``nice`` lowers the priority of this thread alone (on Linux).
        """
        self.name, self.policy = name, policy
        self.stop = threading.Event()
        self.heartbeat = time.monotonic()
        self.failed, self.fatal = failed, fatal
        self._work, self._setup, self._mend = work, setup, mend
        self._nice, self._role_name = nice, role or name
        self._role: ThreadRole | None = None
        self._condition = Condition.RUNNING
        self._restarts = 0
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.heartbeat = time.monotonic()
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Stop the thread and wait for its end; False if it is still busy after ``timeout`` seconds."""
        self.stop.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        self._release_role()
        return not self._thread.is_alive()

    def hangs(self, now: float) -> bool:
        """Whether a round takes longer than the policy allows, at monotonic second ``now``."""
        return self._thread.is_alive() and not self.stop.is_set() and now - self.heartbeat > self.policy.silent_s

    def abandon(self, reason: str) -> None:
        """Give up a thread that hangs, for the reason that `health` reports; if it goes on after all, it ends."""
        self.stop.set()
        self._release_role()
        self._condition, self._error = Condition.HUNG, reason

    @property
    def well(self) -> bool:
        """Whether the last round was finished without an error."""
        return self._condition is Condition.RUNNING

    def health(self, now: float) -> Health:
        """Health of the stage at monotonic second ``now``."""
        stopped = self._condition is Condition.RUNNING and not self._thread.is_alive()
        condition = Condition.STOPPED if stopped else self._condition
        return Health(condition, max(0.0, now - self.heartbeat), self._restarts, self._error)

    def _release_role(self) -> None:
        if self._role is not None:
            self._role.release()

    def _run(self) -> None:
        self._role = enter_role(self._role_name)
        if self._nice and hasattr(os, "setpriority"):
            # Linux gives every thread its own nice level, addressed by the thread's native id.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        failures = 0
        began = time.monotonic()
        next_step = self._setup
        while not self.stop.is_set():
            try:
                if next_step is not None:
                    next_step()
                    next_step = None
                self._work()
                self.heartbeat = time.monotonic()
                if self.stop.is_set():
                    return
                self._condition = Condition.RUNNING
            except Exception as error:
                now = time.monotonic()
                failures = 1 if now - began > HEALTHY_S else failures + 1
                began, next_step = now, self._mend
                if not self._fails(error, failures):
                    return

    def _fails(self, error: Exception, failures: int) -> bool:
        """Report the failure and wait for the next attempt; False if there is none."""
        self.heartbeat = time.monotonic()
        known, self._error = self._error, one_line(error)
        log.error(
            "stage %s failed: %s",
            self.name,
            self._error,
            exc_info=error if self._error != known else None,
            extra={"event": "stage_failed", "stage": self.name, "fields": {"error": self._error, "failures": failures}},
        )
        self.failed(self.name, error)
        pauses = self.policy.pauses
        exhausted = failures > len(pauses)
        # The stage is tried rarely from now on, or not at all.
        lasting = exhausted or (failures == len(pauses) and self.policy.failed is Fallback.AGAIN)
        self._condition = Condition.FAILED if lasting else Condition.RESTARTING
        if is_device_error(error) or (exhausted and self.policy.failed is Fallback.STOP):
            self._condition = Condition.FAILED
            self.fatal(self.name, error)
            return False
        self._restarts += 1
        pause = pauses[min(failures, len(pauses)) - 1]
        self.heartbeat += pause  # a pause is no hang
        return not self.stop.wait(pause)


def limit_torch_threads(threads: int) -> None:
    """Let torch operations of the calling thread use ``threads`` cores."""
    import torch

    # Torch keeps the number per thread, but a thread's first operation resets it to the process-wide one:
    # asking for the number first takes that reset out of the way.
    torch.get_num_threads()
    torch.set_num_threads(threads)

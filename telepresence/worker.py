"""A named thread that does rounds of work, is watched, and is restarted by a stated policy."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger("telepresence")

BACKOFF_S: Final = (0.25, 1.0, 3.0)
"""Pauses before the restarts of a stage that raised; after the last one the failure is fatal."""

HEALTHY_S: Final = 60.0
"""A stage that ran this long since its last failure starts over with all its restarts."""


class Worker:
    """Runs ``work`` over and over in a thread called ``name`` until stopped.

    ``work`` does one round and returns within about a second, so that a stop is noticed.  ``setup`` runs in
    the thread before the first round and after every failure.  A round that raises is logged with one line,
    reported to ``failed``, and retried after a pause; after three restarts ``fatal`` is called and the thread
    ends.  ``nice`` lowers the priority of this thread alone, where the system can (Linux).
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], None],
        *,
        failed: Callable[[str, Exception], None],
        fatal: Callable[[str, Exception], None],
        setup: Callable[[], None] | None = None,
        nice: int = 0,
    ) -> None:
        self.name = name
        self.stop = threading.Event()
        self.heartbeat = time.monotonic()
        self._work, self._setup, self._failed, self._fatal = work, setup, failed, fatal
        self._nice = nice
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Ask the thread to stop and wait; False if it is still busy after ``timeout`` seconds."""
        self.stop.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def silent_for(self, now: float) -> float:
        """Seconds since the last finished round, 0 if the thread is not running."""
        return now - self.heartbeat if self._thread.is_alive() else 0.0

    def _run(self) -> None:
        if self._nice and hasattr(os, "setpriority"):
            # Linux gives every thread its own nice level, addressed by the thread's native id.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        failures = 0
        while not self.stop.is_set():
            started = time.monotonic()
            try:
                if self._setup is not None:
                    self._setup()
                while not self.stop.is_set():
                    self._work()
                    self.heartbeat = time.monotonic()
                return
            except Exception as error:
                if time.monotonic() - started > HEALTHY_S:
                    failures = 0
                log.debug("stage %s failed", self.name, exc_info=True)
                log.error("stage %s failed: %s: %s", self.name, type(error).__name__, error)
                self._failed(self.name, error)
                if failures == len(BACKOFF_S):
                    self._fatal(self.name, error)
                    return
                self.stop.wait(BACKOFF_S[failures])
                failures += 1


def limit_torch_threads(threads: int) -> None:
    """Let torch use ``threads`` cores for the operations of this thread."""
    import torch

    # Torch keeps the number per thread, but a thread's first operation resets it to the process-wide one:
    # asking for the number first takes that reset out of the way.
    torch.get_num_threads()
    torch.set_num_threads(threads)

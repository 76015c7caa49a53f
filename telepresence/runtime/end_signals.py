"""Signals that end a command: Ctrl-C (SIGINT), SIGTERM, SIGHUP of a closed terminal, and others that can be handled.

The first signal ends the command in order: what it holds is saved, its temporary files are removed.  The same request
often arrives several times at once: ``timeout`` signals the command and its process group, a shell passes on the SIGHUP
that the terminal has sent.  Therefore only a later signal counts as the impatience of a person.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from types import FrameType
from typing import Final

REPEAT_S: Final = 0.3
"""Seconds after the first signal during which further signals belong to the same request."""
SIGNALS: Final = tuple(
    signal.Signals[name]
    for name in (
        *("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM"),
        *("SIGPROF", "SIGXCPU", "SIGPOLL", "SIGPWR", "SIGSTKFLT"),
    )
    if name in signal.Signals.__members__
)
"""The signals that end a command; SIGBREAK exists on Windows alone, most others on Unix alone."""
PATIENT: Final = ("SIGHUP",)
"""Names of signals that no person sends to hurry a command that is ending."""


class EndedBySignal(BaseException):
    """Raised on the main thread by the first signal, so that every context manager of the command is left.

    Attributes:
        number: number of the signal.
        status: exit status of the process, as shells report a signal.
    """

    def __init__(self, number: int) -> None:
        self.number, self.status = number, exit_status(number)
        super().__init__(f"ended by {signal.Signals(number).name}")


class SignalEffect(Enum):
    """What a signal does: end the command in order, nothing, or end the process at once."""

    END = "end"
    NOTHING = "nothing"
    EXIT_AT_ONCE = "exit at once"


class SignalJudge:
    """Decides what each signal does, from the time of the first one."""

    def __init__(self) -> None:
        self._first: float | None = None

    def judge(self, number: int, seconds: float) -> SignalEffect:
        """Effect of signal ``number`` that arrives at ``seconds`` on any clock that never goes back."""
        if self._first is None:
            self._first = seconds
            return SignalEffect.END
        patient = signal.Signals(number).name in PATIENT
        return SignalEffect.NOTHING if patient or seconds - self._first < REPEAT_S else SignalEffect.EXIT_AT_ONCE


def exit_status(number: int) -> int:
    """Exit status of a process that signal ``number`` has ended, as shells report it: 130 for SIGINT."""
    return 128 + number


class EndSignals:
    """Handlers of the signals in `SIGNALS` for the whole process; belongs to the main thread.

    A signal that a library handles is left to it.  A signal that was ignored when the process started (SIGHUP under
    ``nohup``) stays ignored, except SIGINT inside `first_calls`: shells ignore it for commands in the background, which
    other programs end with it nevertheless.

    Python calls handlers on the main thread only, once it is back from the library that it is in.  A thread of its own
    therefore reads every signal as it arrives, so that a person who presses Ctrl-C twice does not wait.

    Attributes:
        before_exit: called before a repeated signal ends the process at once; it must be quick.
        raised: number of the signal for which an exception was raised; None before.
    """

    def __init__(self) -> None:
        self.before_exit: Callable[[], None] = lambda: None
        self.raised: int | None = None
        self._judge = SignalJudge()
        self._on_first: Callable[[int], None] = self._raise_end
        self._handled_first = False
        self._arrivals: socket.socket | None = None
        self._final_status: int | None = None

    def install(self) -> None:
        """Handle the signals from now on."""
        if self._arrivals is None:
            self._arrivals, write_end = socket.socketpair()
            write_end.setblocking(False)
            signal.set_wakeup_fd(write_end.detach(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._arrivals,), name="signals", daemon=True).start()
            atexit.register(self._ignore)
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._handle)

    @contextmanager
    def first_calls(self, on_first: Callable[[int], None]) -> Iterator[None]:
        """Inside the block the first signal calls ``on_first`` with its number and raises nothing."""
        handlers = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}
        before = self._on_first
        self._on_first = on_first
        self.install()
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            self._on_first = before
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def finish(self, status: int) -> None:
        """From now on a signal ends the process with ``status``: the command is done, Python is shutting down."""
        self._final_status, self._handled_first = status, True
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # closed terminal: a second failure at exit would change the status
                with suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def _ignore(self) -> None:
        """Ignore the signals: Python is about to restore their defaults, which would change the exit status."""
        for number in SIGNALS:
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._handled_first:
            self._handled_first = True
            self._on_first(number)

    def _raise_end(self, number: int) -> None:
        """What the first signal does outside `first_calls`: raise `EndedBySignal`, KeyboardInterrupt for SIGINT."""
        self.raised = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise EndedBySignal(number)

    def _watch(self, arrivals: socket.socket) -> None:
        """Read the numbers of signals as they arrive, and end the process at once if one of them says so."""
        while True:
            for number in arrivals.recv(64):
                if number not in SIGNALS or signal.getsignal(number) != self._handle:
                    continue
                if self._final_status is not None:
                    os._exit(self._final_status)
                if self._judge.judge(number, time.monotonic()) is SignalEffect.EXIT_AT_ONCE:
                    self.before_exit()
                    os._exit(exit_status(number))


END_SIGNALS: Final = EndSignals()
"""The handlers of this process."""

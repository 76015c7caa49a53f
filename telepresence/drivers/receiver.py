"""What moves the face from outside: one newest state, and the counts of what became of everything that came."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Final

from insta_runtime.types import HeadState
from telepresence.runtime.policy import POLICIES
from telepresence.runtime.rate_limiter import RateLimiter
from telepresence.runtime.worker import Worker

Transfer = Callable[[HeadState, str | None], HeadState]

RATE: Final = 250.0
"""Messages a second that an inlet reads: twice the fastest tracker; what comes beyond that is dropped unread ..."""
BURST_S: Final = 0.4
"""... but those of so many seconds may come at once."""
FLOOR_NS: Final = 500_000_000
"""While the sender that drives has spoken within this time, no other is heeded."""
JOIN_S: Final = 5.0


@dataclass(frozen=True)
class Driven:
    """A state that a message asked for, and when it arrived (``now_ns`` clock).

    ``transferred`` says that it was somebody else's, and now is before the camera that the avatar was learned with.
    """

    state: HeadState
    seq: int
    arrived_ns: int
    transferred: bool = False


class Inlet:
    """A source of head states with a thread of its own.  Subclasses fill `_round`, which calls `_show` and `_drop`.

    ``accepted`` hears of every state that is taken, ``refused`` of messages that are wrong, with one line that says why
    (of a flood of them, now and then); ``transfer`` makes the state to show from what was sent and the person whose it
    is.  All three are called on the inlet's thread.

    Attributes:
        name: what it is called in `/status` and by ``--drive``.
        address: where it listens, once `start` has returned.
        worker: the thread; an error in it that is no message's fault is treated by the policy ``inlet``.
        counts: messages by what became of them: ``taken``, ``malformed``, ``late`` (a newer one had come before it),
            ``stale`` (old when it came), ``busy`` (of another sender than the one that drives), ``flood``; and of
            packets, ``empty`` (no face) and ``foreign`` (from elsewhere than is allowed).
    """

    def __init__(
        self,
        name: str,
        *,
        refused: Callable[[str], None],
        accepted: Callable[[], None] = lambda: None,
        transfer: Transfer = lambda state, _person: state,
        rate: float = RATE,
    ) -> None:
        """``rate``: messages a second that are read; what comes beyond that is dropped unread."""
        self.name, self.address = name, ""
        self.counts: Counter[str] = Counter()
        self._refused, self._accepted, self._transfer = refused, accepted, transfer
        self._newest: Driven | None = None
        self._arrivals: deque[int] = deque(maxlen=16)
        self._limiter, self._complaints = RateLimiter(rate, rate * BURST_S), RateLimiter(5.0, 50.0)
        self.worker = Worker(name, self._round, policy=POLICIES["inlet"])

    def start(self) -> None:
        """Begin to receive.  UserError if that cannot be."""
        self.worker.start()

    def stop(self) -> None:
        """Release what `start` took and wait for the thread; may be called twice."""
        if self.worker.join(JOIN_S):  # what is in use still must not be closed
            self._close()

    def newest(self) -> Driven | None:
        """The state after the newest message that was taken, or None before the first."""
        return self._newest

    def age(self, now_ns: int) -> float | None:
        """Seconds since the newest message that was taken, or None before the first."""
        newest = self._newest
        return None if newest is None else (now_ns - newest.arrived_ns) / 1e9

    def interval(self) -> float | None:
        """Seconds between messages of late, the median of some; None while there are too few."""
        arrivals = list(self._arrivals)
        if len(arrivals) < 4:
            return None
        return median(later - earlier for earlier, later in pairwise(arrivals)) / 1e9

    def report(self, now_ns: int) -> dict[str, Any]:
        """What `/status` says of it."""
        age, interval = self.age(now_ns), self.interval()
        live = age is not None and interval is not None and age < 2.0
        return {
            "address": self.address,
            "age_s": round(age, 3) if age is not None else None,
            "rate": round(1.0 / interval, 1) if live and interval else 0.0,
            "counts": dict(self.counts),
        }

    def _round(self) -> None:
        """Wait for what comes next, a moment at most, and deal with it."""
        raise NotImplementedError

    def _close(self) -> None:
        """Release what `start` took, if it did."""

    def _may_read(self, arrived_ns: int) -> bool:
        if self._limiter.acquire(1e-9 * arrived_ns):
            return True
        self.counts["flood"] += 1
        return False

    def _drop(self, kind: str, text: str | None = None) -> None:
        """Leave a message out; ``text`` says what is wrong with one that is."""
        self.counts[kind] += 1
        if text is not None and self._complaints.acquire(1e-9 * now_ns()):
            self._refused(text)

    def _show(self, state: HeadState, seq: int, arrived_ns: int, person: str | None, *, placed: bool = True) -> None:
        """``state`` is the newest.  ``placed``: the sender says where the head is, too."""
        shown = self._transfer(state, person)
        self.counts["taken"] += 1
        self._arrivals.append(arrived_ns)
        self._newest = Driven(shown, seq, arrived_ns, transferred=shown is not state and placed)
        self._accepted()


def now_ns() -> int:
    """The clock of arrivals and capture times."""
    return time.monotonic_ns()

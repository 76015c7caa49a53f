"""Base class of the receivers of head states, with the newest state, message counts, and a rate limit."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Final

from insta_runtime.types import HeadState
from telepresence.runtime.clock import now_ns
from telepresence.runtime.failure_policy import POLICIES
from telepresence.runtime.rate_limiter import RateLimiter
from telepresence.runtime.worker import Worker

StateTransfer = Callable[[HeadState, str | None], HeadState]
"""Function that maps a received state and its subject's fingerprint (None: unknown) to the state to render."""

RATE: Final = 250.0
"""Maximum number of messages read per second, twice the rate of the fastest tracker; further ones are dropped."""
BURST_S: Final = 0.4
"""Capacity of the rate limiter's token bucket, in seconds of messages at `RATE`."""
FLOOR_NS: Final = 500_000_000
"""Time since its newest message, in ns, during which a sender excludes all other senders."""
JOIN_S: Final = 5.0
"""Maximum time, in seconds, to wait for the receiving thread to stop."""


@dataclass(frozen=True)
class DrivenState:
    """Head state after a received message.

    Attributes:
        state: the head state to render, after expression transfer.
        seq: sequence number of the message.
        arrived_ns: monotonic time of arrival, in ns.
        transferred: whether the state is another subject's, mapped to the avatar's subject and camera.
    """

    state: HeadState
    seq: int
    arrived_ns: int
    transferred: bool = False


class StateReceiver:
    """Base class that receives head states on a thread; subclasses implement `_round`.

    ``on_accepted`` is called after every accepted state; ``on_refused`` is called with a one-line reason for malformed
    messages, at a limited rate; ``transfer`` maps a received state to the state to render.  All three are called on
    the receiver's thread.

    Attributes:
        name: name of the driver in `/status` and for ``--drive``.
        address: address of the socket, once `start` has returned.
        worker: the thread; an unexpected exception in it is handled by the policy ``receiver``.
        counts: number of messages by result: ``accepted``, ``malformed``, ``late`` (a newer one arrived before),
            ``stale`` (delayed), ``busy`` (from another sender than the current one), ``flood`` (rate limit); and of
            packets: ``empty`` (no face) and ``foreign`` (from an address that is not allowed).  ``left_out`` counts the
            invalid parts of messages whose other parts were used.
    """

    def __init__(
        self,
        name: str,
        *,
        on_refused: Callable[[str], None],
        on_accepted: Callable[[], None] = lambda: None,
        transfer: StateTransfer = lambda state, _fingerprint: state,
        rate: float = RATE,
    ) -> None:
        """``rate`` is the maximum number of messages read per second; further messages are dropped unread."""
        self.name, self.address = name, ""
        self.counts: Counter[str] = Counter()
        self._on_refused, self._on_accepted, self._transfer = on_refused, on_accepted, transfer
        self._newest: DrivenState | None = None
        self._arrivals: deque[int] = deque(maxlen=16)
        self._limiter, self._complaints = RateLimiter(rate, rate * BURST_S), RateLimiter(5.0, 50.0)
        self.worker = Worker(name, self._round, role="receive", policy=POLICIES["receiver"])

    def start(self) -> None:
        """Start receiving.  Raises UserError if that fails."""
        self.worker.start()

    def stop(self) -> None:
        """Stop the thread and release its socket; can be called twice."""
        if self.worker.join(JOIN_S):  # a socket that is still in use must not be closed
            self._close()

    def newest(self) -> DrivenState | None:
        """State after the newest accepted message; None before the first."""
        return self._newest

    def age(self, now_ns: int) -> float | None:
        """Seconds since the newest accepted message; None before the first."""
        newest = self._newest
        return None if newest is None else (now_ns - newest.arrived_ns) / 1e9

    def interval(self) -> float | None:
        """Median interval between the newest accepted messages, in seconds; None for fewer than four."""
        arrivals = list(self._arrivals)
        if len(arrivals) < 4:
            return None
        return median(later - earlier for earlier, later in pairwise(arrivals)) / 1e9

    def report(self, now_ns: int) -> dict[str, Any]:
        """JSON object for `/status`: address, age (s) and rate (messages per second) of messages, and counts."""
        age, interval = self.age(now_ns), self.interval()
        live = age is not None and interval is not None and age < 2.0
        return {
            "address": self.address,
            "age_s": round(age, 3) if age is not None else None,
            "rate": round(1.0 / interval, 1) if live and interval else 0.0,
            "counts": dict(self.counts),
        }

    def _round(self) -> None:
        """Wait briefly for the next message and process it."""
        raise NotImplementedError

    def _close(self) -> None:
        """Release what `start` allocated; called after the thread has stopped."""

    def _may_read(self, arrived_ns: int) -> bool:
        if self._limiter.acquire(1e-9 * arrived_ns):
            return True
        self.counts["flood"] += 1
        return False

    def _reject(self, kind: str, text: str | None = None) -> None:
        """Drop a message and count it as ``kind``; ``text`` is the reason why it is malformed."""
        self.counts[kind] += 1
        if text is not None and self._complaints.acquire(1e-9 * now_ns()):
            self._on_refused(text)

    def _note_left_out(self, texts: list[str]) -> None:
        """Count the parts of a message that are left out, and report the reasons ``texts``."""
        for text in texts:
            self._reject("left_out", text)

    def _accept(
        self, state: HeadState, seq: int, arrived_ns: int, fingerprint: str | None, *, placed: bool = True
    ) -> None:
        """Make ``state`` the newest one.  ``placed``: the sender also states the position of the head."""
        shown = self._transfer(state, fingerprint)
        self.counts["accepted"] += 1
        self._arrivals.append(arrived_ns)
        self._newest = DrivenState(shown, seq, arrived_ns, transferred=shown is not state and placed)
        self._on_accepted()

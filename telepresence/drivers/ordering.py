"""Which message of a sender is the newest, and which is old: by its numbers and clock, which need not be ours."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

Verdict = Literal["taken", "late", "stale"]

STALE_S: Final = 0.5
"""A message that took so much longer than others of its sender is of no use any more."""
RESTART_S: Final = 1.0
"""A sender that was silent for so long may begin anew with any number ..."""
FORGET_S: Final = 3.0
"""... and with any clock."""
SAME_CLOCK_NS: Final = 1_000_000_000
"""A capture time less than this before its arrival is taken to be on this machine's monotonic clock."""

_SPAN_NS: Final = 30_000_000_000
_PIECES: Final = 10


class Ordering:
    """The order of one sender's messages.

    How long a message took is its arrival less its capture time, but for the difference of the two clocks: the least of
    these differences in the last half minute is that of the clocks and of the fastest way, whatever is beyond was spent
    waiting.
    """

    def __init__(self) -> None:
        self._seq: int | None = None
        self._sent_ns = self._arrived_ns = 0
        self._least: deque[tuple[int, int]] = deque()  # (piece of time, least difference in it)

    def judge(self, seq: int, sent_ns: int, arrived_ns: int) -> Verdict:
        """What becomes of the message ``seq`` that was captured at ``sent_ns``, by the sender's clock."""
        silent_s = (arrived_ns - self._arrived_ns) / 1e9
        if self._seq is not None and seq <= self._seq:
            # A sender that was started again counts from zero, but its time goes on.
            if silent_s < RESTART_S and sent_ns <= self._sent_ns:
                return "late"
            self._least.clear()
        elif silent_s >= FORGET_S:
            self._least.clear()
        if self.waited_ns(sent_ns, arrived_ns) > STALE_S * 1e9:
            return "stale"
        self._seq, self._sent_ns, self._arrived_ns = seq, sent_ns, arrived_ns
        return "taken"

    def waited_ns(self, sent_ns: int, arrived_ns: int) -> int:
        """How much longer than the fastest of late the message took; it is taken note of."""
        took, piece = arrived_ns - sent_ns, arrived_ns // (_SPAN_NS // _PIECES)
        if self._least and self._least[-1][0] == piece:
            self._least[-1] = (piece, min(self._least[-1][1], took))
        else:
            self._least.append((piece, took))
            while self._least[0][0] <= piece - _PIECES:
                self._least.popleft()
        return took - min(least for _, least in self._least)

    def captured_ns(self, sent_ns: int, arrived_ns: int) -> int:
        """The capture time on this machine's clock, as far as can be known: of another machine, the waiting alone."""
        if 0 <= arrived_ns - sent_ns < SAME_CLOCK_NS:
            return sent_ns
        return arrived_ns - max(0, arrived_ns - sent_ns - min(least for _, least in self._least))

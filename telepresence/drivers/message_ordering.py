"""Detection of late and stale messages of one sender, whose clock may differ from that of this machine."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

MessageFate = Literal["taken", "late", "stale"]
"""Result of the classification of a message."""

STALE_S: Final = 0.5
"""Delay, in seconds beyond the sender's smallest one, above which a message is stale."""
RESTART_S: Final = 1.0
"""Silence, in seconds, after which a sender may restart with any sequence number."""
FORGET_S: Final = 3.0
"""Silence, in seconds, after which the estimated clock offset of a sender is discarded."""
SAME_CLOCK_NS: Final = 1_000_000_000
"""Delay, in ns, up to which a capture time is assumed to be on this machine's monotonic clock."""

_SPAN_NS: Final = 30_000_000_000
_PIECES: Final = 10


class MessageOrdering:
    """Detects late and stale messages of one sender, by sequence number and capture time.

    The transit time is arrival minus capture time, up to the offset of the two clocks.  The smallest difference in the
    last half minute is taken as that offset plus the shortest transit; any excess is queueing delay.
    """

    def __init__(self) -> None:
        self._seq: int | None = None
        self._sent_ns = self._arrived_ns = 0
        self._least: deque[tuple[int, int]] = deque()  # (time slice, smallest difference in it)

    def classify(self, seq: int, sent_ns: int, arrived_ns: int) -> MessageFate:
        """Classify message ``seq``, captured at ``sent_ns`` on the sender's clock: ``taken``, ``late`` or ``stale``."""
        silent_s = (arrived_ns - self._arrived_ns) / 1e9
        if self._seq is not None and seq <= self._seq:
            # A restarted sender counts from zero, but its capture times grow.
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
        """Delay of the message beyond the smallest recent one, in ns; also records the message's transit time."""
        took, piece = arrived_ns - sent_ns, arrived_ns // (_SPAN_NS // _PIECES)
        if self._least and self._least[-1][0] == piece:
            self._least[-1] = (piece, min(self._least[-1][1], took))
        else:
            self._least.append((piece, took))
            while self._least[0][0] <= piece - _PIECES:
                self._least.popleft()
        return took - min(least for _, least in self._least)

    def captured_ns(self, sent_ns: int, arrived_ns: int) -> int:
        """Capture time on this machine's clock; for a sender on another machine, arrival minus queueing delay."""
        if 0 <= arrived_ns - sent_ns < SAME_CLOCK_NS:
            return sent_ns
        return arrived_ns - max(0, arrived_ns - sent_ns - min(least for _, least in self._least))

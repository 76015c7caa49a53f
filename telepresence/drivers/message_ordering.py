"""Detection of late (reordered) and stale (delayed) messages of a sender whose clock may differ from ours."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

MessageFate = Literal["accepted", "late", "stale"]
"""Result of the classification of a message."""

STALE_S: Final = 0.5
"""Queueing delay in seconds, beyond the sender's smallest delay, above which a message is stale."""
RESTART_S: Final = 1.0
"""Silence, in seconds, after which a sender may restart with any sequence number."""
FORGET_S: Final = 3.0
"""Silence, in seconds, after which the estimated clock offset of a sender is discarded."""
SAME_CLOCK_NS: Final = 1_000_000_000
"""Delay, in ns, up to which a capture time is assumed to be on this machine's monotonic clock."""

STANDING_S: Final = 0.5
"""Seconds without an increase of the capture time after which the sender's clock counts as stopped."""
SLOW: Final = 0.9
"""Rate of a sender's clock relative to ours below which its capture times are not used to detect delays."""
PROBATION_S: Final = 2.0
"""Interval in seconds over which the rate of an unreliable clock is measured before its times are used again."""
BACK_S: Final = 5.0
"""Backward step of a time stamp in seconds from which the sender is assumed to have restarted."""
RUN: Final = 4
"""Number of messages captured before the newest one after which the sender's clock was evidently set back."""
WINDOW: Final = 32
"""Number of newest packets without sequence numbers among which fewer than `RUN` may be classified as late."""

_SPAN_NS: Final = 30_000_000_000
_PIECES: Final = 10


class MessageOrdering:
    """Detects late and stale messages of one sender, by sequence number and capture time.

    Arrival minus capture time is the transit time plus the offset of the two clocks.  The smallest difference in the
    last half minute is taken as that offset plus the shortest transit time; any excess is queueing delay.

    A clock that is set back while sequence numbers grow, stops, or is much slower than ours is unreliable: messages are
    ordered by sequence number alone until the clock runs at the rate of ours again.
    """

    def __init__(self) -> None:
        self._seq: int | None = None
        self._sent_ns = self._arrived_ns = 0
        self._least: deque[tuple[int, int]] = deque()  # (time slice, smallest difference in it)
        self._seen_seq, self._seen_ns = -1, 0  # highest sequence number and capture time received, taken or not
        self._progress_ns = 0  # arrival of the message with that capture time
        self._stale = 0  # number of stale messages since the last one that was taken
        self._behind = 0  # number of messages with an earlier capture time since then
        self._doubted: tuple[int, int] | None = None  # capture and arrival time since which the clock is doubted

    def classify(self, seq: int, sent_ns: int, arrived_ns: int) -> MessageFate:
        """Classify message ``seq``, captured at ``sent_ns`` on the sender's clock."""
        silent_s = (arrived_ns - self._arrived_ns) / 1e9
        if self._seq is not None and seq <= self._seq:
            # A restarted sender counts from zero, but its capture times grow.
            if silent_s < RESTART_S and sent_ns <= self._sent_ns:
                return "late"
            self._least.clear()
            self._seen_seq, self._doubted = -1, None
        elif silent_s >= FORGET_S:
            if self._stale >= RUN:  # not silent: all messages in this time were stale
                self._doubted = sent_ns, arrived_ns
            self._least.clear()
        if not self._is_paced(seq, sent_ns, arrived_ns):
            self._least.clear()
        if self.waited_ns(sent_ns, arrived_ns) > STALE_S * 1e9:
            self._stale += 1
            return "stale"
        self._stale = 0
        self._seq, self._sent_ns, self._arrived_ns = seq, sent_ns, arrived_ns
        return "accepted"

    def _is_paced(self, seq: int, sent_ns: int, arrived_ns: int) -> bool:
        """Whether the sender's clock keeps pace with ours, so that capture times show delays."""
        if seq > self._seen_seq:
            if self._seen_seq < 0 or sent_ns > self._seen_ns:
                self._seen_ns, self._progress_ns, self._behind = sent_ns, arrived_ns, 0
            else:
                self._behind += sent_ns < self._seen_ns
            if self._behind == RUN or arrived_ns - self._progress_ns > STANDING_S * 1e9:
                self._doubted = sent_ns, arrived_ns
                self._seen_ns, self._progress_ns, self._behind = sent_ns, arrived_ns, 0
            self._seen_seq = seq
        if self._doubted is None:
            return True
        since = arrived_ns - self._doubted[1]
        if since > PROBATION_S * 1e9:
            paced = sent_ns - self._doubted[0] >= SLOW * since
            self._doubted = None if paced else (sent_ns, arrived_ns)
        return False

    def waited_ns(self, sent_ns: int, arrived_ns: int) -> int:
        """Queueing delay in ns: the message's delay beyond the smallest recent one.  Also records the delay."""
        took, piece = arrived_ns - sent_ns, arrived_ns // (_SPAN_NS // _PIECES)
        if self._least and self._least[-1][0] == piece:
            self._least[-1] = (piece, min(self._least[-1][1], took))
        else:
            self._least.append((piece, took))
            while self._least[0][0] <= piece - _PIECES:
                self._least.popleft()
        return took - min(least for _, least in self._least)

    def captured_ns(self, sent_ns: int, arrived_ns: int) -> int:
        """Capture time in ns on our monotonic clock, for a message that `classify` has accepted.

        If the sender uses another clock, it is estimated as arrival minus queueing delay.
        """
        if 0 <= arrived_ns - sent_ns < SAME_CLOCK_NS:
            return sent_ns
        return arrived_ns - max(0, arrived_ns - sent_ns - min(least for _, least in self._least))


class TimestampOrdering:
    """Detects late packets of one sender by their time stamps alone, for protocols without sequence numbers.

    A packet with an earlier time stamp than the newest accepted one was reordered by the network, and is late.  That is
    rare: if `RUN` of the last `WINDOW` packets were earlier, the sender's clock is the cause (set back, wrapped around,
    running backwards or inexact), and packets are accepted in the order of arrival.  A packet that is earlier by
    `BACK_S` or more is also accepted, as from a sender that was restarted.
    """

    def __init__(self) -> None:
        self._newest_s: float | None = None
        self._earlier: deque[bool] = deque(maxlen=WINDOW)  # of the last packets: earlier than the one taken before

    def classify(self, sent_s: float) -> MessageFate:
        """Classify a packet with the time stamp ``sent_s``, in seconds on the sender's clock."""
        back_s = 0.0 if self._newest_s is None else self._newest_s - sent_s
        self._earlier.append(0.0 < back_s < BACK_S)
        if self._earlier[-1] and sum(self._earlier) < RUN:
            return "late"
        self._newest_s = sent_s
        return "accepted"

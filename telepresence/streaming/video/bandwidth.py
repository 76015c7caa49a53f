"""How much the way to one viewer carries, by what the viewer reports; and how much of it may be spent twice."""

from __future__ import annotations

import math
from enum import StrEnum

START = 400_000
"""bit/s for a viewer of which nothing is known: a link of 600 kbit/s takes it without a queue."""

FLOOR = 50_000
"""bit/s: less than this is not worth sending."""

PROBE_PACKETS, PROBE_GAP_S = 8, 0.004
"""The first packets leave so far apart, at about 2.4 Mbit/s: a receiver that gets them so knows at once that this rate
is there (a receive-side estimator of WebRTC looks for it in its first seconds), instead of finding out in twenty."""

HEADROOM = 0.85  # of what the viewer believes to be there; the rest is for sound, packet headers, repeated packets
LOSSY, CLEAN = 0.10, 0.02  # a link that loses more than the first is too full; less than the second has room
COUNT = 60  # packets over which loss is counted: browsers report so often that one report says nothing
SMOOTHING = 0.3  # weight of the newest count
GROWTH, CREEP = 1.08, 1.02  # for each count without loss, and with some, lest an unlucky count is remembered for ever
SILENT_COUNTS = 4  # so many without an estimate: this viewer makes none

RETRANSMIT_SHARE = 0.2  # of the rate
RETRANSMIT_BURST = 4  # packets that may always go again together
RESENT_S = 0.08  # a packet takes so long to be missed once more; browsers ask every 0.1 s
PACKET = 1200  # bytes, about


class Estimate:
    """bit/s that one viewer can take, by its REMB messages and, as a second opinion, the loss that it reports.

    The loss rule is much like that of Google's congestion control (draft-ietf-rmcat-gcc, section 6): a few lost packets
    are a property of the link and lower nothing.
    """

    def __init__(self) -> None:
        self._believed: float | None = None  # by the viewer
        self._counted: tuple[int, int] | None = None  # packets lost and packets sent, at the last count
        self._counts = 0
        self._guess = float(START)  # for a viewer that makes no estimate
        self._loss = 0.0
        self._cap = math.inf  # by loss

    def believes(self, bitrate: float) -> None:
        """The viewer believes that ``bitrate`` bit/s are there (REMB)."""
        self._believed = max(0.0, bitrate)

    def received(self, lost: int, sent: int, sending: float) -> None:
        """The viewer missed ``lost`` of ``sent`` packets since some beginning; now ``sending`` bit/s are sent."""
        lost_before, sent_before = self._counted or (lost, sent)
        passed = sent - sent_before
        if self._counted is None or passed < 0:
            self._counted = (lost, sent)
        elif passed >= COUNT:
            self._counted = (lost, sent)
            self._count(min(1.0, max(0.0, (lost - lost_before) / passed)), sending)

    def _count(self, loss: float, sending: float) -> None:
        self._counts += 1
        self._loss += SMOOTHING * (loss - self._loss)
        if self._loss > LOSSY:
            self._cap = min(self._cap, sending) * (1.0 - self._loss / 2)
        else:
            growth = GROWTH if self._loss < CLEAN else CREEP
            self._cap *= growth
            self._guess = min(self._guess, sending) * growth
            if self._cap > max(self._guess, self._believed or 0.0):
                self._cap = math.inf  # it holds up nothing any more

    @property
    def allowance(self) -> float | None:
        """bit/s; None while the viewer has not told enough."""
        if self._believed is None and self._counts < SILENT_COUNTS:
            return None
        room = self._guess if self._believed is None else HEADROOM * self._believed
        return max(FLOOR, min(room, self._cap))


class Resend(StrEnum):
    """What becomes of a packet that a viewer misses."""

    NOW = "now"
    UNDER_WAY = "under way"  # it went again a moment ago
    NEVER = "never"  # the budget is spent: only a keyframe helps the viewer on


class RetransmitBudget:
    """Lets packets be sent again for a fifth of the rate, as more would only fill the queue that loses them."""

    def __init__(self, now: float) -> None:
        self._credit = float(RETRANSMIT_BURST * PACKET)  # bytes
        self._at = now
        self._resent: dict[int, float] = {}  # when, by sequence number, oldest first

    def ask(self, sequence_number: int, rate: float, now: float) -> Resend:
        """What to do about this packet at ``now`` seconds, when the stream has ``rate`` bit/s."""
        share = RETRANSMIT_SHARE * rate / 8
        self._credit = min(max(RETRANSMIT_BURST * PACKET, share), self._credit + share * (now - self._at))
        self._at = now
        for number in [number for number, at in self._resent.items() if now - at >= RESENT_S]:
            del self._resent[number]
        if sequence_number in self._resent:
            return Resend.UNDER_WAY
        if self._credit < PACKET:
            return Resend.NEVER
        self._credit -= PACKET
        self._resent[sequence_number] = now
        return Resend.NOW

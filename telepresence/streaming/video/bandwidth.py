"""Bandwidth estimate of one viewer from its RTCP feedback, and the budget for retransmitted packets."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

START: Final = 400_000
"""Bitrate in bit/s for a viewer whose bandwidth is unknown; a link of 600 kbit/s carries it without a queue."""

FLOOR: Final = 50_000
"""Lowest video bitrate in bit/s; the video is useless below it."""

PROBE_PACKETS: Final = 8
"""Number of video packets at the start of a connection that are sent at a fixed pace, to probe the bandwidth."""
PROBE_GAP_S: Final = 0.004
"""Seconds between the packets of the bandwidth probe, about 2.4 Mbit/s.

The bandwidth estimator of a WebRTC receiver finds that rate in the first seconds, instead of after twenty.
"""

HEADROOM: Final = 0.85
"""Part of the estimated bandwidth used for video; the rest is for audio, packet headers and retransmission."""
LOSSY: Final = 0.10
"""Packet loss above which the bitrate is reduced."""
CLEAN: Final = 0.02
"""Packet loss below which the bitrate grows fast."""
COUNT: Final = 60
"""Number of packets over which loss is measured; a single receiver report covers too few."""
SMOOTHING: Final = 0.3
"""Weight of the newest measurement in the smoothed packet loss."""
GROWTH: Final = 1.08
"""Growth of the bitrate for each measurement without loss."""
CREEP: Final = 1.02
"""Growth of the bitrate for each measurement with little loss, so that a single bad one does not limit it for ever."""
SILENT_COUNTS: Final = 4
"""Number of loss measurements without REMB after which a viewer counts as one that sends no REMB."""

RETRANSMIT_SHARE: Final = 0.2
"""Part of the bitrate that may be used for retransmitted packets."""
RETRANSMIT_BURST: Final = 4
"""Minimum number of packets that can be retransmitted at once after a pause."""
RESENT_S: Final = 0.08
"""Seconds within which a repeated request for the same packet is ignored; browsers repeat requests every 0.1 s."""
PACKET: Final = 1200
"""Approximate size of a video packet in bytes."""


class BandwidthEstimate:
    """Estimates how many bit/s one viewer can receive, from its REMB messages and the packet loss that it reports.

    The loss rule follows Google's congestion control (draft-ietf-rmcat-gcc, section 6): a few lost packets are normal
    and do not lower the estimate.
    """

    def __init__(self) -> None:
        self._remb: float | None = None  # bit/s, of the newest REMB message
        self._counted: tuple[int, int] | None = None  # packets lost and sent at the last measurement
        self._counts = 0
        self._guess = float(START)  # bit/s, for a viewer without REMB
        self._loss = 0.0
        self._cap = math.inf  # bit/s, by packet loss

    def on_remb(self, bitrate: float) -> None:
        """Use a REMB message: the viewer estimates its bandwidth at ``bitrate`` bit/s."""
        self._remb = max(0.0, bitrate)

    def on_receiver_report(self, lost: int, sent: int, rate: float) -> None:
        """Use a receiver report: ``lost`` of ``sent`` packets in all are missing; ``rate`` bit/s are sent now."""
        lost_before, sent_before = self._counted or (lost, sent)
        passed = sent - sent_before
        if self._counted is None or passed < 0:
            self._counted = (lost, sent)
        elif passed >= COUNT:
            self._counted = (lost, sent)
            self._add_measurement(min(1.0, max(0.0, (lost - lost_before) / passed)), rate)

    def _add_measurement(self, loss: float, rate: float) -> None:
        self._counts += 1
        self._loss += SMOOTHING * (loss - self._loss)
        if self._loss > LOSSY:
            self._cap = min(self._cap, rate) * (1.0 - self._loss / 2)
        else:
            growth = GROWTH if self._loss < CLEAN else CREEP
            self._cap *= growth
            self._guess = min(self._guess, rate) * growth
            if self._cap > max(self._guess, self._remb or 0.0):
                self._cap = math.inf  # the limit by loss has no effect any more

    @property
    def bitrate(self) -> float | None:
        """Video bitrate in bit/s that the viewer can receive; None until it has sent enough feedback."""
        if self._remb is None and self._counts < SILENT_COUNTS:
            return None
        available = self._guess if self._remb is None else HEADROOM * self._remb
        return max(FLOOR, min(available, self._cap))


class ResendDecision(StrEnum):
    """What to do about a packet that a viewer reports as missing."""

    RESEND = "resend"
    ALREADY_SENT = "already sent"  # it was retransmitted a moment ago
    SEND_KEYFRAME = "send keyframe"  # the budget is used up: only a keyframe helps the viewer


class RetransmitBudget:
    """Limits retransmission to a fifth of the bitrate; more would fill the very queue that drops packets."""

    def __init__(self, now: float) -> None:
        """``now``: seconds of any monotonic clock."""
        self._credit = float(RETRANSMIT_BURST * PACKET)  # bytes
        self._updated = now
        self._resent: dict[int, float] = {}  # time by sequence number, the oldest first

    def decide(self, sequence_number: int, rate: float, now: float) -> ResendDecision:
        """Whether to retransmit a missing packet at ``now`` seconds, in a stream of ``rate`` bit/s."""
        share = RETRANSMIT_SHARE * rate / 8
        self._credit = min(max(RETRANSMIT_BURST * PACKET, share), self._credit + share * (now - self._updated))
        self._updated = now
        for number in [number for number, at in self._resent.items() if now - at >= RESENT_S]:
            del self._resent[number]
        if sequence_number in self._resent:
            return ResendDecision.ALREADY_SENT
        if self._credit < PACKET:
            return ResendDecision.SEND_KEYFRAME
        self._credit -= PACKET
        self._resent[sequence_number] = now
        return ResendDecision.RESEND

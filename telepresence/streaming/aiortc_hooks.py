"""Everything that reaches into aiortc's and aioice's private parts, and nothing else does.

aiortc hands a track no feedback about packets that were encoded elsewhere, holds every received picture back until
the next one arrives, and offers no loopback address.  Each hook below changes one of these on one object (loopback:
in one function of aioice), and `missing` says before the first call whether the names it needs are still there.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

import aioice.ice
import aiortc
from aiortc import RTCRtpReceiver, RTCRtpSender
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtp import RtpPacket

VERSION = "1.16."
JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"


def missing() -> list[str]:
    """Names of aiortc and aioice that the hooks need and this installation lacks; empty when all is well."""
    lacking = [] if aiortc.__version__.startswith(VERSION) else [f"aiortc {VERSION}*, found {aiortc.__version__}"]
    for owner, name in (
        (RTCRtpSender, "_send_keyframe"),
        (JitterBuffer, "_remove_frame"),
        (JitterBuffer, "add"),
        (JitterBuffer, "remove"),
        (aioice.ice, "get_host_addresses"),
    ):
        if not callable(getattr(owner, name, None)):
            lacking.append(f"{owner.__name__}.{name}")
    if JITTER_BUFFER not in inspect.getsource(RTCRtpReceiver).replace("self.__", "_RTCRtpReceiver__"):
        lacking.append(f"RTCRtpReceiver.{JITTER_BUFFER}")
    return lacking


def on_feedback(sender: RTCRtpSender, keyframe: Callable[[], None]) -> None:
    """Call ``keyframe``, on the event loop, when the peer asks ``sender`` for one (PLI, FIR)."""
    vars(sender).update(_send_keyframe=keyframe)


def release_on_marker(receiver: RTCRtpReceiver) -> None:
    """Decode a received picture when its last packet is there, one frame interval earlier than aiortc does."""
    setattr(receiver, JITTER_BUFFER, _MarkerJitterBuffer(capacity=512, is_video=True))


def tap(receiver: RTCRtpReceiver, take: Callable[[int, int, bytes], None]) -> None:
    """Hand every packet (sequence number, time stamp, payload) to ``take`` as it arrives, on the event loop.

    aiortc itself holds sound back for 80 ms, and after a loss for a third of a second.  The track stays empty.
    """
    setattr(receiver, JITTER_BUFFER, _Tap(take))


class _Tap(JitterBuffer):
    """Holds nothing."""

    def __init__(self, take: Callable[[int, int, bytes], None]) -> None:
        super().__init__(capacity=2)
        self._take = take

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        self._take(packet.sequence_number, packet.timestamp, vars(packet)["_data"])
        return False, None


class _MarkerJitterBuffer(JitterBuffer):
    """Trusts the RTP marker bit, which ends a video frame (RFC 6184 and RFC 7741, section 4.1 and 4.2)."""

    _packets: list[RtpPacket | None]
    _origin: int

    def _remove_frame(self, sequence_number: int) -> JitterFrame | None:
        packets: list[RtpPacket] = []
        for count in range(self._capacity):
            packet = self._packets[(self._origin + count) % self._capacity]
            if packet is None or (packets and packet.timestamp != packets[0].timestamp):
                break
            packets.append(packet)
            if packet.marker:
                data = b"".join(vars(p)["_data"] for p in packets)
                self.remove(len(packets))
                return JitterFrame(data=data, timestamp=packet.timestamp)
        return super()._remove_frame(sequence_number)


def offer_loopback() -> None:
    """Let this process offer 127.0.0.1 to its peers, first: it is where they are, and maybe all that they have."""
    original = aioice.ice.get_host_addresses
    if getattr(original, "offers_loopback", False):
        return

    def addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return ["127.0.0.1"] * use_ipv4 + original(use_ipv4=use_ipv4, use_ipv6=use_ipv6)

    vars(addresses)["offers_loopback"] = True
    vars(aioice.ice)["get_host_addresses"] = addresses


def quieten() -> None:
    """Keep SDP and addresses of peers out of the log: both libraries write them there below WARNING."""
    for name in ("aiortc", "aioice"):
        logging.getLogger(name).setLevel(logging.WARNING)

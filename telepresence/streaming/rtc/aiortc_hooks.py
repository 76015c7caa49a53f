"""Everything that reaches into aiortc's and aioice's private parts, and nothing else does.

aiortc hands a track no feedback about packets that were encoded elsewhere, sends lost packets again however many they
are, holds every received picture back until the next one arrives, lets any number of them wait for its decoder, cannot
tell a browser to show pictures at once, and offers no loopback address.  Each hook below changes one of these on one
object (what is offered: in the whole process), and `missing` says before the first call whether the names it needs are
still there.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import queue
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import aioice.ice
import aiortc
from aiortc import (
    RTCIceTransport,
    RTCPeerConnection,
    RTCRtpCodecParameters,
    RTCRtpReceiver,
    RTCRtpSender,
    RTCSctpTransport,
)
from aiortc.codecs import HEADER_EXTENSIONS
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters
from aiortc.rtp import (
    RTCP_PSFB_APP,
    HeaderExtensions,
    HeaderExtensionsMap,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpSrPacket,
    RtpPacket,
    pack_header_extensions,
    unpack_header_extensions,
    unpack_remb_fci,
)

from telepresence.streaming.rtc.network_simulation import Link

VERSION = "1.16."
SRTP_FIRST, SRTP_LAST = 128, 191  # first byte of a media packet or a report (RFC 7983)
LARGE = 200  # bytes: no sound, no report
IDR = 5  # type of an H.264 NAL unit
PLAYOUT_DELAY = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
PLAYOUT_DELAY_ID = 4  # one that aiortc leaves free
ONE_BYTE = 0xBEDE  # profile of header extensions with numbers below 15
NO_DELAY = bytes(3)  # two numbers of 12 bits: at least 0 and at most 0 times 10 ms
EXTENSIONS = "_RTCRtpSender__rtp_header_extensions_map"
DATA_WINDOW = 1024 * 1024  # that aiortc offers, and does not insist on
JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
DECODER_QUEUE = "_RTCRtpReceiver__decoder_queue"
DECODER_ERROR = "_RTCRtpReceiver__decoder_error"  # an event: set, it asks the peer for a keyframe

UNDECODED = 15
"""Received pictures that may wait for the decoder: half a second."""
ASK_AGAIN_S = 1.0


def missing() -> list[str]:
    """Names of aiortc and aioice that the hooks need and this installation lacks; empty when all is well."""
    lacking = [] if aiortc.__version__.startswith(VERSION) else [f"aiortc {VERSION}*, found {aiortc.__version__}"]
    for owner, name in (
        (RTCRtpSender, "_send_keyframe"),
        (RTCRtpSender, "_handle_rtcp_packet"),
        (RTCRtpSender, "_retransmit"),
        (H264Encoder, "pack"),
        (Vp8Encoder, "pack"),
        (JitterBuffer, "_remove_frame"),
        (JitterBuffer, "add"),
        (JitterBuffer, "remove"),
        (aioice.ice, "get_host_addresses"),
    ):
        if not callable(getattr(owner, name, None)):
            lacking.append(f"{owner.__name__}.{name}")
    receiver = _source(RTCRtpReceiver).replace("self.__", "_RTCRtpReceiver__")
    names = (JITTER_BUFFER, DECODER_QUEUE, DECODER_ERROR)
    lacking += [f"RTCRtpReceiver.{name}" for name in names if name not in receiver]
    if EXTENSIONS not in _source(RTCRtpSender).replace("self.__", "_RTCRtpSender__"):
        lacking.append(f"RTCRtpSender.{EXTENSIONS}")
    for kind, name in (
        (RTCRtpSender, "_ssrc"),
        (RTCIceTransport, "_send"),
        (RTCSctpTransport, "_advertised_rwnd"),
    ):
        if f"self.{name} = " not in _source(kind):
            lacking.append(f"{kind.__name__}.{name}")
    return lacking


def _source(kind: type) -> str:
    """Text of the module of a class.

    Of the class alone it takes a parser to find, and CPython 3.11's raises SystemError when two threads parse at once.
    """
    return inspect.getsource(sys.modules[kind.__module__])


def hoard(pc: RTCPeerConnection) -> int:
    """Bytes of messages without an end, on data channels, that the peer of ``pc`` makes this process keep."""
    sctp = pc.sctp
    return DATA_WINDOW - int(getattr(sctp, "_advertised_rwnd", DATA_WINDOW)) if sctp is not None else 0


def channels(pc: RTCPeerConnection) -> int:
    """Streams of data that the peer of ``pc`` has sent anything on."""
    return len(getattr(pc.sctp, "_inbound_streams", ())) if pc.sctp is not None else 0


class Listener(Protocol):
    """Who hears, on the event loop, what a peer reports about the video that it gets."""

    def keyframe(self) -> None:
        """The peer asks for a keyframe (PLI, FIR)."""

    def believes(self, bitrate: float) -> None:
        """The peer believes that ``bitrate`` bit/s reach it (REMB)."""

    def received(self, lost: int, sent: int) -> None:
        """The peer missed ``lost`` of ``sent`` packets since some beginning (receiver report)."""

    def resend(self, sequence_number: int) -> bool:
        """Whether a packet that the peer misses (NACK) is to go again."""


def on_feedback(sender: RTCRtpSender, listener: Listener) -> None:
    """Let ``listener`` hear what the peer of ``sender`` reports."""
    handle, retransmit = sender._handle_rtcp_packet, sender._retransmit

    async def hearing(packet: Any) -> None:
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == sender._ssrc:
                    listener.received(report.packets_lost, report.highest_sequence)
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            try:
                bitrate, sources = unpack_remb_fci(packet.fci)
            except ValueError:  # another application's message
                return
            if sender._ssrc in sources:
                listener.believes(bitrate)
        await handle(packet)

    async def sparing(sequence_number: int) -> None:
        if listener.resend(sequence_number):
            await retransmit(sequence_number)

    vars(sender).update(_send_keyframe=listener.keyframe, _handle_rtcp_packet=hearing, _retransmit=sparing)


def space_out(transport: RTCIceTransport, packets: int, gap_s: float) -> None:
    """Let so much time pass after each of the first ``packets`` large media packets that leave over ``transport``."""
    send, left = transport._send, packets

    async def sending(data: bytes) -> None:
        nonlocal left
        await send(data)
        if SRTP_FIRST <= data[0] <= SRTP_LAST and len(data) > LARGE:
            left -= 1
            if left <= 0:
                vars(transport).update(_send=send)
            await asyncio.sleep(gap_s)

    vars(transport).update(_send=sending)


def send_through(transport: RTCIceTransport, link: Link) -> None:
    """Send all that leaves over ``transport`` through the simulated ``link``."""
    loop, send = asyncio.get_running_loop(), transport._send
    under_way: set[asyncio.Task[None]] = set()

    async def arrive(data: bytes) -> None:
        with suppress(ConnectionError):  # closed while this was under way
            await send(data)

    def set_out(data: bytes) -> None:
        task = loop.create_task(arrive(data))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    async def sending(data: bytes) -> None:
        if (at := link.arrival(len(data), loop.time())) is not None:
            loop.call_at(at, set_out, data)

    vars(transport).update(_send=sending)


def release_on_marker(receiver: RTCRtpReceiver) -> None:
    """Decode a received picture when its last packet is there, one frame interval earlier than aiortc does."""
    setattr(receiver, JITTER_BUFFER, _MarkerJitterBuffer(capacity=512, is_video=True))


def bound(receiver: RTCRtpReceiver) -> None:
    """Let a decoder that falls behind lose pictures, up to the next keyframe, where aiortc lets any number wait.

    Call it before the connection is made.
    """
    setattr(receiver, DECODER_QUEUE, _Undecoded(getattr(receiver, DECODER_ERROR).set))


class _Undecoded(queue.Queue[Any]):
    """``(codec, frame)`` for aiortc's decoder thread, None at the end.  ``ask`` asks the peer for a keyframe."""

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__()
        self._ask = ask
        self._asked: float | None = None  # since when nothing is decoded for want of a keyframe

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is not None:
            now = time.monotonic()
            if self.qsize() >= UNDECODED:
                with suppress(queue.Empty):
                    while True:
                        self.get_nowait()
                self._asked = -math.inf
            if self._asked is not None:
                if not _is_keyframe(*item):
                    if now - self._asked >= ASK_AGAIN_S:
                        self._asked = now
                        self._ask()
                    return
                self._asked = None
        super().put(item, block, timeout)


def _is_keyframe(codec: RTCRtpCodecParameters, frame: JitterFrame) -> bool:
    """Whether decoding can begin with ``frame``, as aiortc hands it to its decoders."""
    if codec.name == "VP8":
        return len(frame.data) > 0 and not frame.data[0] & 1  # RFC 6386, section 9.1
    units = frame.data.split(b"\0\0\1")[1:]
    return any(unit[:1] and unit[0] & 0x1F == IDR for unit in units)


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


class _AtOnce(HeaderExtensionsMap):
    """Adds to every packet that it is to be shown as soon as it can be."""

    def __init__(self) -> None:
        super().__init__()
        self._id = 0

    def configure(self, parameters: RTCRtpParameters) -> None:
        super().configure(parameters)
        self._id = next((ext.id for ext in parameters.headerExtensions if ext.uri == PLAYOUT_DELAY), 0)

    def set(self, values: HeaderExtensions) -> tuple[int, bytes]:
        profile, packed = super().set(values)
        if not self._id:
            return profile, packed
        if profile == ONE_BYTE and self._id < 15:  # as always; what fills up the others may stand between (RFC 8285)
            return profile, packed + bytes([self._id << 4 | len(NO_DELAY) - 1]) + NO_DELAY
        return pack_header_extensions([*unpack_header_extensions(profile, packed), (self._id, NO_DELAY)])


def offer_no_delay() -> None:
    """Let this process negotiate the header extension that `show_at_once` needs."""
    known = HEADER_EXTENSIONS["video"]
    if all(ext.uri != PLAYOUT_DELAY for ext in known):
        known.append(RTCRtpHeaderExtensionParameters(id=PLAYOUT_DELAY_ID, uri=PLAYOUT_DELAY))


def show_at_once(sender: RTCRtpSender) -> None:
    """Tell the peer of ``sender``, if it understands that, to show pictures without waiting for an even pace.

    A browser would otherwise hold each one back for as long as the slowest of the last seconds took.
    """
    vars(sender)[EXTENSIONS] = _AtOnce()


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

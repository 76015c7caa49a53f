"""All uses of private names of aiortc and aioice, with a check that the installed versions still have them.

Nine changes to aiortc, each made on one object, or once in the process for what an offer contains:

- RTCP feedback on packets that were encoded elsewhere goes to a `FeedbackHandler`, which also limits retransmission;
- a received frame is decoded when its last packet arrives, instead of when the next frame begins;
- the queue of received frames that wait for the decoder is bounded;
- audio packets are passed on as they arrive, without aiortc's jitter buffer;
- video packets ask the browser to show frames without delay (the RTP header extension ``playout-delay``);
- the loopback address is offered as an ICE candidate;
- DTLS also accepts peers with RSA certificates (GStreamer) or AES-256 alone;
- the reason why a DTLS handshake fails is kept;
- TURN servers may have IPv6 addresses.

`missing_names` reports names that are gone, before the first call.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import queue
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import aioice.ice
import aiortc
import aiortc.rtcicetransport
from aiortc import (
    RTCCertificate,
    RTCDtlsTransport,
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
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from telepresence.streaming.rtc.network_simulation import SimulatedLink

VERSION = "1.16."
"""Prefix of the aiortc versions that these hooks were written for."""
SRTP_FIRST, SRTP_LAST = 128, 191
"""Range of the first byte of SRTP and SRTCP packets (RFC 7983)."""
MIN_VIDEO_BYTES = 200
"""Size in bytes above which a packet is taken for video; audio packets and RTCP reports are smaller."""
IDR = 5
"""H.264 NAL unit type of an IDR slice, at which decoding can begin."""
PLAYOUT_DELAY = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
"""URI of the RTP header extension that limits how long a receiver may delay frames."""
PLAYOUT_DELAY_ID = 4
"""Identifier under which the playout-delay extension is offered; aiortc does not use it."""
ONE_BYTE = 0xBEDE
"""Profile of RTP header extensions with one-byte headers, for identifiers below 15 (RFC 8285)."""
NO_DELAY = bytes(3)
"""Playout-delay value: minimum and maximum delay 0, each 12 bits in units of 10 ms."""
EXTENSIONS = "_RTCRtpSender__rtp_header_extensions_map"
"""aiortc's private name of a sender's map of header extensions."""
DATA_WINDOW = 1024 * 1024
"""Receive window in bytes that aiortc advertises for SCTP (data channels), but does not enforce."""
JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
"""aiortc's private name of a receiver's jitter buffer."""
DECODER_QUEUE = "_RTCRtpReceiver__decoder_queue"
"""aiortc's private name of a receiver's queue of frames that wait for the decoder thread."""
DECODER_ERROR = "_RTCRtpReceiver__decoder_error"
"""aiortc's private name of a receiver's event that, when set, requests a keyframe from the peer."""

MAX_UNDECODED = 15
"""Maximum number of received frames that wait for the decoder; at 30 frames a second, half a second."""
KEYFRAME_RETRY_S = 1.0
"""Seconds after which a keyframe is requested again, while none has arrived."""

CIPHERS = b":".join(
    b"ECDHE-%b-%b" % (key, cipher)
    for cipher in (b"AES128-GCM-SHA256", b"CHACHA20-POLY1305", b"AES256-GCM-SHA384", b"AES128-SHA", b"AES256-SHA")
    for key in (b"ECDSA", b"RSA")
)
"""Cipher suites of DTLS, all with forward secrecy; aiortc's own list leaves out RSA certificates and AES-256-GCM."""
CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
"""Elliptic curves of certificates that OpenSSL 4 accepts; RFC 8422 removed all others from TLS."""
ALERTS = {
    40: "no cipher suite, curve or signature in common",
    47: "a parameter of the handshake is not supported",
}
"""Meaning of the usual alerts that end a DTLS handshake (RFC 8446, section 6.2), by number."""
TURN_URL = re.compile(
    r"(?P<scheme>turns?):\[?(?P<host>(?<=\[)[0-9a-fA-F:.]+(?=\])|(?<!\[)[^?:\[\]]+)\]?"
    r"(:(?P<port>\d+))?(\?transport=(?P<transport>.*))?"
)
"""URL of a TURN server; aiortc's own pattern has no brackets for IPv6 addresses."""


def missing_names() -> list[str]:
    """Private names of aiortc and aioice that the hooks need and the installed versions lack; empty if none."""
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
        (RTCCertificate, "_create_ssl_context"),
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
        (RTCDtlsTransport, "_ssl"),
    ):
        if not any(f"self.{name}{sign}" in _source(kind) for sign in (" = ", ": ")):
            lacking.append(f"{kind.__name__}.{name}")
    lacking += [] if hasattr(aiortc.rtcicetransport, "TURN_REGEX") else ["aiortc.rtcicetransport.TURN_REGEX"]
    return lacking


def _source(kind: type) -> str:
    """Source of the module that defines a class.

    Not `inspect.getsource` of the class: it parses, and CPython 3.11 raises SystemError if two threads parse at once.
    """
    return inspect.getsource(sys.modules[kind.__module__])


def buffered_bytes(pc: RTCPeerConnection) -> int:
    """Bytes buffered for incomplete SCTP messages (data channels) from the peer of ``pc``."""
    sctp = pc.sctp
    return DATA_WINDOW - int(getattr(sctp, "_advertised_rwnd", DATA_WINDOW)) if sctp is not None else 0


def inbound_streams(pc: RTCPeerConnection) -> int:
    """Number of SCTP streams (data channels) on which the peer of ``pc`` has sent data."""
    return len(getattr(pc.sctp, "_inbound_streams", ())) if pc.sctp is not None else 0


class FeedbackHandler(Protocol):
    """Receiver of a peer's RTCP feedback on the video that is sent to it; called on the event loop."""

    def on_keyframe_request(self) -> None:
        """The peer requests a keyframe (PLI, FIR)."""

    def on_remb(self, bitrate: float) -> None:
        """The peer estimates its available bandwidth at ``bitrate`` bit/s (REMB)."""

    def on_receiver_report(self, lost: int, highest: int) -> None:
        """Receiver report: total of ``lost`` packets, and ``highest`` (extended) sequence number received."""

    def should_resend(self, sequence_number: int) -> bool:
        """Whether to retransmit a packet that the peer reports as missing (NACK)."""


def set_feedback_handler(sender: RTCRtpSender, handler: FeedbackHandler) -> None:
    """Pass the RTCP feedback of the peer of ``sender`` to ``handler``; aiortc still handles it, too."""
    handle, retransmit = sender._handle_rtcp_packet, sender._retransmit

    async def handle_and_pass_on(packet: Any) -> None:
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == sender._ssrc:
                    handler.on_receiver_report(report.packets_lost, report.highest_sequence)
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            try:
                bitrate, sources = unpack_remb_fci(packet.fci)
            except ValueError:  # an application message of another kind
                return
            if sender._ssrc in sources:
                handler.on_remb(bitrate)
        await handle(packet)

    async def retransmit_if_allowed(sequence_number: int) -> None:
        if handler.should_resend(sequence_number):
            await retransmit(sequence_number)

    vars(sender).update(
        _send_keyframe=handler.on_keyframe_request,
        _handle_rtcp_packet=handle_and_pass_on,
        _retransmit=retransmit_if_allowed,
    )


def pace_first_packets(transport: RTCIceTransport, packets: int, gap_s: float) -> None:
    """Wait ``gap_s`` seconds after each of the first ``packets`` video packets that are sent over ``transport``."""
    send, left = transport._send, packets

    async def send_paced(data: bytes) -> None:
        nonlocal left
        await send(data)
        if SRTP_FIRST <= data[0] <= SRTP_LAST and len(data) > MIN_VIDEO_BYTES:
            left -= 1
            if left <= 0:
                vars(transport).update(_send=send)
            await asyncio.sleep(gap_s)

    vars(transport).update(_send=send_paced)


def simulate_link(transport: RTCIceTransport, link: SimulatedLink) -> None:
    """Delay and drop all packets that are sent over ``transport`` as ``link`` says."""
    loop, send = asyncio.get_running_loop(), transport._send
    sending: set[asyncio.Task[None]] = set()

    async def deliver(data: bytes) -> None:
        with suppress(ConnectionError):  # the transport was closed meanwhile
            await send(data)

    def start_delivery(data: bytes) -> None:
        task = loop.create_task(deliver(data))
        sending.add(task)
        task.add_done_callback(sending.discard)

    async def send_delayed(data: bytes) -> None:
        if (at := link.arrival(len(data), loop.time())) is not None:
            loop.call_at(at, start_delivery, data)

    vars(transport).update(_send=send_delayed)


def decode_on_marker(receiver: RTCRtpReceiver) -> None:
    """Decode a received frame as soon as its last packet has arrived, one frame interval earlier than aiortc does."""
    setattr(receiver, JITTER_BUFFER, _MarkerJitterBuffer(capacity=512, is_video=True))


def limit_decoder_queue(receiver: RTCRtpReceiver) -> None:
    """Drop received frames, up to the next keyframe, when more than `MAX_UNDECODED` wait for the decoder.

    To be called before the connection is made.
    """
    setattr(receiver, DECODER_QUEUE, _BoundedDecoderQueue(getattr(receiver, DECODER_ERROR).set))


class _BoundedDecoderQueue(queue.Queue[Any]):
    """Bounded queue of ``(codec, frame)`` for aiortc's decoder thread; None ends the thread."""

    def __init__(self, request_keyframe: Callable[[], None]) -> None:
        super().__init__()
        self._request_keyframe = request_keyframe
        self._requested_at: float | None = None  # time of the last request, while a keyframe is awaited

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is not None:
            now = time.monotonic()
            if self.qsize() >= MAX_UNDECODED:
                with suppress(queue.Empty):
                    while True:
                        self.get_nowait()
                self._requested_at = -math.inf
            if self._requested_at is not None:
                if not _is_keyframe(*item):
                    if now - self._requested_at >= KEYFRAME_RETRY_S:
                        self._requested_at = now
                        self._request_keyframe()
                    return
                self._requested_at = None
        super().put(item, block, timeout)


def _is_keyframe(codec: RTCRtpCodecParameters, frame: JitterFrame) -> bool:
    """Whether ``frame``, as aiortc passes it to its decoders, is a keyframe."""
    if codec.name == "VP8":
        return len(frame.data) > 0 and not frame.data[0] & 1  # RFC 6386, section 9.1
    units = frame.data.split(b"\0\0\1")[1:]
    return any(unit[:1] and unit[0] & 0x1F == IDR for unit in units)


def set_packet_callback(receiver: RTCRtpReceiver, on_packet: Callable[[int, int, bytes], None]) -> None:
    """Call ``on_packet`` with sequence number, time stamp and payload of every received packet, on the event loop.

    It avoids aiortc's jitter buffer, which delays audio by 80 ms, and by a third of a second after a lost packet.  The
    track of ``receiver`` stays empty.
    """
    setattr(receiver, JITTER_BUFFER, _PacketTap(on_packet))


class _PacketTap(JitterBuffer):
    """Jitter buffer that passes packets to a callback and keeps none."""

    def __init__(self, on_packet: Callable[[int, int, bytes], None]) -> None:
        super().__init__(capacity=2)
        self._on_packet = on_packet

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        self._on_packet(packet.sequence_number, packet.timestamp, vars(packet)["_data"])
        return False, None


class _MarkerJitterBuffer(JitterBuffer):
    """Jitter buffer that ends a video frame at the RTP marker bit (RFC 6184, section 4.1; RFC 7741, section 4.2)."""

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


class _PlayoutDelayMap(HeaderExtensionsMap):
    """Map of RTP header extensions that adds ``playout-delay`` 0 to every packet, if that was negotiated."""

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
        if profile == ONE_BYTE and self._id < 15:  # the usual case; padding may stand between extensions (RFC 8285)
            return profile, packed + bytes([self._id << 4 | len(NO_DELAY) - 1]) + NO_DELAY
        return pack_header_extensions([*unpack_header_extensions(profile, packed), (self._id, NO_DELAY)])


def offer_playout_delay() -> None:
    """Offer the header extension ``playout-delay``, which `send_playout_delay` needs, in all offers of this process."""
    known = HEADER_EXTENSIONS["video"]
    if all(ext.uri != PLAYOUT_DELAY for ext in known):
        known.append(RTCRtpHeaderExtensionParameters(id=PLAYOUT_DELAY_ID, uri=PLAYOUT_DELAY))


def send_playout_delay(sender: RTCRtpSender) -> None:
    """Ask the peer of ``sender`` to show frames without delay, if it has negotiated ``playout-delay``.

    Otherwise a browser delays every frame by as much as the slowest frame of the last seconds.
    """
    vars(sender)[EXTENSIONS] = _PlayoutDelayMap()


def offer_loopback() -> None:
    """Offer 127.0.0.1 as the first ICE candidate, for peers on the same machine; it works without a network, too."""
    original = aioice.ice.get_host_addresses
    if getattr(original, "offers_loopback", False):
        return

    def addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return ["127.0.0.1"] * use_ipv4 + original(use_ipv4=use_ipv4, use_ipv6=use_ipv6)

    vars(addresses)["offers_loopback"] = True
    vars(aioice.ice)["get_host_addresses"] = addresses


_dtls_faults: WeakKeyDictionary[SSL.Connection, str] = WeakKeyDictionary()


def broaden_dtls() -> None:
    """Offer and accept the cipher suites in `CIPHERS` in every DTLS handshake of this process, and note its faults."""
    vars(aiortc.rtcicetransport)["TURN_REGEX"] = TURN_URL
    original = RTCCertificate._create_ssl_context
    if getattr(original, "broadened", False):
        return

    def verify(connection: SSL.Connection, certificate: Any, _error: int, _depth: int, _ok: int) -> bool:
        key = certificate.to_cryptography().public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in CURVES:
            _dtls_faults[connection] = (
                f"its certificate is on the curve {key.curve.name}, which TLS no longer allows: give it an ECDSA"
                " certificate on P-256 (FFmpeg: the options cert_file and key_file)"
            )
        return True  # aiortc compares the certificate with the fingerprint in the SDP

    def note(connection: SSL.Connection, where: int, code: int) -> None:
        if where in (SSL.SSL_CB_READ_ALERT, SSL.SSL_CB_WRITE_ALERT) and code & 0xFF:
            by = "it ended the handshake" if where == SSL.SSL_CB_READ_ALERT else "the handshake was ended"
            meaning = ALERTS.get(code & 0xFF, "without a reason")
            _dtls_faults.setdefault(connection, f"{by}: {meaning} (alert {code & 0xFF})")

    def context(self: RTCCertificate, srtp_profiles: list[Any]) -> SSL.Context:
        made = original(self, srtp_profiles)
        made.set_cipher_list(CIPHERS)
        made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        made.set_info_callback(note)
        return made

    vars(context)["broadened"] = True
    RTCCertificate._create_ssl_context = context  # type: ignore[method-assign]


def connection_failure(pc: RTCPeerConnection) -> str:
    """Reason in one line why ``pc``, which has failed or was given up, did not connect: ICE, or DTLS."""
    transports = [transceiver.receiver.transport for transceiver in pc.getTransceivers()]
    for dtls in transports:
        if dtls is None or (tls := dtls._ssl) is None or dtls.state not in ("failed", "connecting"):
            continue
        if (reason := _dtls_faults.get(tls)) is not None:
            return f"DTLS: {reason}"
        if dtls.state == "connecting":
            return "DTLS: it does not answer the handshake"
        if not dtls.encrypted:
            return "DTLS: the connection was lost during the handshake"
        if not tls.get_selected_srtp_profile():
            return "DTLS: no SRTP profile in common"
        return "DTLS: its certificate does not have the fingerprint in its SDP"
    return "ICE: none of its addresses answers; UDP may be blocked between the two, which needs a TURN server"


def limit_library_logs() -> None:
    """Keep SDP and addresses of peers out of the log: aiortc and aioice log them at levels below WARNING."""
    for name in ("aiortc", "aioice"):
        logging.getLogger(name).setLevel(logging.WARNING)

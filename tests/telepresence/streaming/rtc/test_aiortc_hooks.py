"""Hooks into aiortc: its private names exist, and each hook has the wanted effect."""

from __future__ import annotations

import asyncio
from typing import Any

import aioice.ice
import aiortc
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCRtpSender, RTCSessionDescription
from aiortc.codecs import HEADER_EXTENSIONS
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpSendParameters
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    HeaderExtensions,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtpPacket,
    pack_remb_fci,
    unpack_header_extensions,
)

from telepresence.streaming import server
from telepresence.streaming.rtc import aiortc_hooks
from telepresence.streaming.rtc.offer import first_video_codec


def test_no_private_name_of_aiortc_is_missing() -> None:
    assert aiortc_hooks.missing_names() == []


def test_another_version_or_a_missing_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiortc, "__version__", "1.17.0")
    monkeypatch.delattr(JitterBuffer, "_remove_frame")
    assert aiortc_hooks.missing_names() == ["aiortc 1.16.*, found 1.17.0", "JitterBuffer._remove_frame"]


def test_without_the_hooks_every_viewer_gets_an_encoder_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert server._can_share_encodes()
    monkeypatch.setattr(aiortc, "__version__", "1.17.0")
    assert not server._can_share_encodes()
    assert "an encoder of its own" in caplog.text
    assert "1.17.0" in caplog.text


class RecordedFeedback:
    """Feedback handler that records all calls, and allows ``budget`` retransmissions."""

    def __init__(self, budget: int = 0) -> None:
        self.entries: list[Any] = []
        self.budget = budget

    def on_keyframe_request(self) -> None:
        self.entries.append("keyframe")

    def on_remb(self, bitrate: float) -> None:
        self.entries.append(bitrate)

    def on_receiver_report(self, lost: int, highest: int) -> None:
        self.entries.append((lost, highest))

    def should_resend(self, _number: int) -> bool:
        self.budget -= 1
        return self.budget >= 0


def sender() -> tuple[RTCPeerConnection, RTCRtpSender]:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    return pc, pc.addTransceiver("video", direction="sendonly").sender


def test_rtcp_feedback_reaches_the_handler() -> None:
    async def scenario() -> None:
        pc, sending = sender()
        feedback, ssrc = RecordedFeedback(), sending._ssrc
        aiortc_hooks.set_feedback_handler(sending, feedback)

        def report(of: int) -> RtcpReceiverInfo:
            return RtcpReceiverInfo(
                ssrc=of, fraction_lost=64, packets_lost=3, highest_sequence=9, jitter=0, lsr=0, dlsr=0
            )

        async def receive(packet: Any) -> None:
            await sending._handle_rtcp_packet(packet)

        await receive(RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=1, media_ssrc=ssrc))
        await receive(RtcpRrPacket(ssrc=1, reports=[report(ssrc), report(ssrc ^ 1)]))
        await receive(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=pack_remb_fci(700_000, [ssrc])))
        await receive(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=pack_remb_fci(900_000, [ssrc ^ 1])))
        await receive(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=b"AFB of another kind"))
        remb = feedback.entries.pop()
        assert feedback.entries == ["keyframe", (3, 9)]
        assert remb == pytest.approx(700_000, rel=0.01)
        await pc.close()

    asyncio.run(scenario())


def test_lost_packets_are_resent_while_the_budget_lasts() -> None:
    async def scenario() -> None:
        pc, sending = sender()
        again: list[int] = []

        async def retransmit(number: int) -> None:
            again.append(number)

        vars(sending).update(_retransmit=retransmit)  # in place of aiortc's own method
        aiortc_hooks.set_feedback_handler(sending, RecordedFeedback(budget=3))
        nack = RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=1, media_ssrc=sending._ssrc, lost=list(range(20, 30)))
        await sending._handle_rtcp_packet(nack)
        assert again == [20, 21, 22]
        await pc.close()

    asyncio.run(scenario())


def test_packets_carry_playout_delay_zero_if_it_was_negotiated() -> None:
    def extensions(*uris: str, first: int = 7) -> list[tuple[int, bytes]]:
        parameters = RTCRtpSendParameters(
            headerExtensions=[RTCRtpHeaderExtensionParameters(id=first + i, uri=uri) for i, uri in enumerate(uris)]
        )
        aiortc_hooks.send_playout_delay(made)
        known = getattr(made, aiortc_hooks.EXTENSIONS)
        known.configure(parameters)
        values = HeaderExtensions(mid="0")
        return unpack_header_extensions(*known.set(values))

    async def scenario() -> RTCRtpSender:
        pc, sending = sender()
        await pc.close()
        return sending

    made = asyncio.run(scenario())
    mid = "urn:ietf:params:rtp-hdrext:sdes:mid"
    assert extensions(mid) == [(7, b"0")]
    for first in (7, 14, 40):  # both identifiers of one byte, of one and two bytes, both of two bytes
        both = extensions(mid, aiortc_hooks.PLAYOUT_DELAY, first=first)
        assert both == [(first, b"0"), (first + 1, b"\0\0\0")]
    assert extensions(aiortc_hooks.PLAYOUT_DELAY) == [(7, b"\0\0\0")]


def test_the_playout_delay_extension_is_offered_once_under_a_free_identifier() -> None:
    aiortc_hooks.offer_playout_delay()
    aiortc_hooks.offer_playout_delay()
    assert [ext.uri for ext in HEADER_EXTENSIONS["video"]].count(aiortc_hooks.PLAYOUT_DELAY) == 1
    known = {(ext.id, ext.uri) for kind in HEADER_EXTENSIONS.values() for ext in kind}
    assert len({number for number, _ in known}) == len(known)


def rtp(sequence: int, timestamp: int, data: bytes, marker: bool) -> RtpPacket:
    packet = RtpPacket(sequence_number=sequence, timestamp=timestamp, marker=int(marker))
    vars(packet)["_data"] = data
    return packet


def test_a_frame_is_released_with_its_last_packet() -> None:
    async def receiver() -> Any:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        made = pc.addTransceiver("video", direction="recvonly").receiver
        aiortc_hooks.decode_on_marker(made)
        await pc.close()
        return getattr(made, aiortc_hooks.JITTER_BUFFER)

    def released(packet: RtpPacket) -> tuple[bytes, int] | None:
        _, frame = buffer.add(packet)
        return (frame.data, frame.timestamp) if frame else None

    buffer = asyncio.run(receiver())
    assert released(rtp(10, 100, b"a", False)) is None
    assert released(rtp(11, 100, b"b", True)) == (b"ab", 100)
    assert released(rtp(12, 200, b"c", True)) == (b"c", 200)
    assert released(rtp(14, 300, b"e", True)) is None  # 13 is missing
    assert released(rtp(13, 300, b"d", False)) == (b"de", 300)
    assert released(rtp(15, 400, b"f", False)) is None  # a sender without markers
    assert released(rtp(16, 500, b"g", False)) == (b"f", 400)


def test_receiver_has_the_jitter_buffer_that_is_replaced() -> None:
    async def scenario() -> None:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        receiver = pc.addTransceiver("video", direction="recvonly").receiver
        assert isinstance(receiver, RTCRtpReceiver)
        assert isinstance(getattr(receiver, aiortc_hooks.JITTER_BUFFER), JitterBuffer)
        await pc.close()

    asyncio.run(scenario())


def test_loopback_is_offered_once() -> None:
    aiortc_hooks.offer_loopback()
    aiortc_hooks.offer_loopback()
    addresses = aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True)
    assert addresses.count("127.0.0.1") == 1


def test_codec_of_an_answer() -> None:
    async def scenario(codec: str) -> str:
        one, two = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
        transceiver = one.addTransceiver("video", direction="recvonly")
        codecs = aiortc.RTCRtpReceiver.getCapabilities("video").codecs
        transceiver.setCodecPreferences([c for c in codecs if c.mimeType == f"video/{codec}"])
        await one.setLocalDescription(await one.createOffer())
        await two.setRemoteDescription(RTCSessionDescription(one.localDescription.sdp, "offer"))
        answer = await two.createAnswer()
        await asyncio.gather(one.close(), two.close())
        return str(answer.sdp)

    assert first_video_codec(asyncio.run(scenario("H264"))) == "H264"
    assert first_video_codec(asyncio.run(scenario("VP8"))) == "VP8"
    assert first_video_codec("v=0\r\n") == ""

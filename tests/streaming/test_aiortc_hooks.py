"""The canary: aiortc's private parts are still where the hooks reach for them."""

from __future__ import annotations

import asyncio
from typing import Any

import aioice.ice
import aiortc
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RTCP_PSFB_PLI, RtcpPsfbPacket, RtpPacket

from telepresence.streaming import aiortc_hooks, server
from telepresence.streaming.offer import first_video_codec


def test_nothing_is_missing() -> None:
    assert aiortc_hooks.missing() == []


def test_another_version_or_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiortc, "__version__", "1.17.0")
    monkeypatch.delattr(JitterBuffer, "_remove_frame")
    assert aiortc_hooks.missing() == ["aiortc 1.16.*, found 1.17.0", "JitterBuffer._remove_frame"]


def test_without_the_hooks_every_viewer_gets_an_encoder_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert server._can_share()
    monkeypatch.setattr(aiortc, "__version__", "1.17.0")
    assert not server._can_share()
    assert "an encoder of its own" in caplog.text
    assert "1.17.0" in caplog.text


def test_feedback_reaches_the_hooks() -> None:
    async def scenario() -> None:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        sender = pc.addTransceiver("video", direction="sendonly").sender
        heard: list[str] = []
        aiortc_hooks.on_feedback(sender, lambda: heard.append("keyframe"))
        await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=1, media_ssrc=sender._ssrc))
        assert heard == ["keyframe"]
        await pc.close()

    asyncio.run(scenario())


def rtp(sequence: int, timestamp: int, data: bytes, marker: bool) -> RtpPacket:
    packet = RtpPacket(sequence_number=sequence, timestamp=timestamp, marker=int(marker))
    vars(packet)["_data"] = data
    return packet


def test_a_picture_is_released_with_its_last_packet() -> None:
    async def receiver() -> Any:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        made = pc.addTransceiver("video", direction="recvonly").receiver
        aiortc_hooks.release_on_marker(made)
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

"""Offers of programs other than Chromium (OBS, Firefox) are answered, and their video arrives."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import pytest
from aiortc import AudioStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from tests.support.grey_video import GreyVideo

# An offer as OBS makes it by libdatachannel: ICE, DTLS and BUNDLE at session level, groups for lip sync, H.264 and Opus
# only, rtcp-mux, no header extensions.
OBS = """\
v=0
o=rtc 3767197920 0 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=group:LS 0 1
a=msid-semantic:WMS *
a=setup:actpass
a=ice-ufrag:{ufrag}
a=ice-pwd:{pwd}
a=ice-options:ice2,trickle
a=fingerprint:sha-256 {fingerprint}
m=audio {port} UDP/TLS/RTP/SAVPF 111
c=IN IP4 127.0.0.1
{candidates}a=end-of-candidates
a=mid:0
a=sendonly
a=ssrc:{audio} cname:obs
a=ssrc:{audio} msid:obs obs-audio
a=msid:obs obs-audio
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10;maxaveragebitrate=96000;stereo=1;sprop-stereo=1;useinbandfec=1
m=video {port} UDP/TLS/RTP/SAVPF 96
c=IN IP4 127.0.0.1
a=mid:1
a=sendonly
a=ssrc:{video} cname:obs
a=ssrc:{video} msid:obs obs-video
a=msid:obs obs-video
a=rtcp-mux
a=rtpmap:96 H264/90000
a=rtcp-fb:96 nack
a=rtcp-fb:96 nack pli
a=rtcp-fb:96 goog-remb
a=fmtp:96 profile-level-id={profile};packetization-mode=1;level-asymmetry-allowed=1
"""


# The offer of a viewer as Firefox makes it: DTLS at session level, its payload types, retransmission for every codec.
FIREFOX = """\
v=0
o=mozilla...THIS_IS_SDPARTA-99.0 8463217624836391 0 IN IP4 0.0.0.0
s=-
t=0 0
a=fingerprint:sha-256 {fingerprint}
a=group:BUNDLE 0
a=ice-options:trickle
a=msid-semantic:WMS *
m=video 9 UDP/TLS/RTP/SAVPF {formats}
c=IN IP4 0.0.0.0
a=recvonly
a=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid
a=extmap:4 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
a=extmap:6/recvonly http://www.webrtc.org/experiments/rtp-hdrext/playout-delay
a=extmap:7 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01
a=fmtp:126 profile-level-id=42e01f;level-asymmetry-allowed=1;packetization-mode=1
a=fmtp:97 profile-level-id=42e01f;level-asymmetry-allowed=1
a=fmtp:120 max-fs=12288;max-fr=60
a=fmtp:124 apt=120
a=fmtp:127 apt=126
a=ice-pwd:0123456789abcdef0123456789abcdef
a=ice-ufrag:0a1b2c3d
a=mid:0
a=rtcp-fb:120 nack
a=rtcp-fb:120 nack pli
a=rtcp-fb:120 ccm fir
a=rtcp-fb:120 goog-remb
a=rtcp-fb:126 nack
a=rtcp-fb:126 nack pli
a=rtcp-fb:126 goog-remb
a=rtcp-mux
a=rtcp-rsize
a=rtpmap:120 VP8/90000
a=rtpmap:124 rtx/90000
a=rtpmap:126 H264/90000
a=rtpmap:127 rtx/90000
a=rtpmap:97 H264/90000
a=setup:actpass
a=ssrc:2384129370 cname:{{b04cbb5a-7d5c-4d4c-93ae-b6f4c2e5d0c4}}
"""


def as_obs(offer: str, profile: str) -> str:
    """Offer of OBS with the keys, ports and candidates of ``offer``."""

    def found(pattern: str) -> list[str]:
        return re.findall(pattern, offer, re.MULTILINE)

    audio, video = found(r"^a=ssrc:(\d+) cname")[:2]
    return OBS.format(
        ufrag=found(r"^a=ice-ufrag:(\S+)")[0],
        pwd=found(r"^a=ice-pwd:(\S+)")[0],
        fingerprint=found(r"^a=fingerprint:sha-256 (\S+)")[0],
        port=found(r"^m=audio (\d+)")[0],
        candidates="".join(f"{line}\n" for line in dict.fromkeys(found(r"^(a=candidate:[^\r\n]+)"))),
        audio=audio,
        video=video,
        profile=profile,
    ).replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("formats", "chosen"), [("120 124 126 127 97", "126 H264/90000"), ("120 124", "120 VP8/90000")]
)
def test_firefox_is_answered_in_h264_where_it_can(studio: Any, formats: str, chosen: str) -> None:
    text = FIREFOX.format(fingerprint=":".join(["AB"] * 32), formats=formats)
    of_codec = re.compile(r"a=(?:rtpmap|fmtp|rtcp-fb):(\d+)")
    lines = [line for line in text.splitlines() if not (m := of_codec.match(line)) or m[1] in formats.split()]
    offer = "\r\n".join([*lines, ""])

    async def scenario() -> str:
        async with aiohttp.ClientSession() as http:
            sdp = {"Content-Type": "application/sdp"}
            async with http.post(f"{studio.server.address}whep", data=offer, headers=sdp) as response:
                assert response.status == 201, await response.text()
                return await response.text()

    answer = asyncio.run(scenario())
    assert "a=sendonly" in answer
    assert re.findall(r"^a=rtpmap:(.*?)\r?$", answer, re.MULTILINE)[0] == chosen


@pytest.mark.parametrize("profile", ["42e01f", "42001f"])
def test_obs_publishes_video_and_audio(studio: Any, profile: str) -> None:
    async def scenario() -> None:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        pc.addTransceiver(AudioStreamTrack(), direction="sendonly")
        video = pc.addTransceiver(GreyVideo(), direction="sendonly")
        h264 = [c for c in video.sender.getCapabilities("video").codecs if c.mimeType == "video/H264"]
        video.setCodecPreferences(h264)
        await pc.setLocalDescription(await pc.createOffer())
        offer = as_obs(pc.localDescription.sdp, profile)
        address = studio.server.address
        async with aiohttp.ClientSession() as http:
            sdp = {"Content-Type": "application/sdp", "User-Agent": "OBS-WHIP"}
            async with http.post(f"{address}whip", data=offer, headers=sdp) as response:
                answer = await response.text()
                assert response.status == 201, answer
                session = response.headers["Location"]
            assert len(re.findall(r"^m=(?:audio|video) [1-9]", answer, re.MULTILINE)) == 2
            assert re.search(r"^a=rtpmap:96 H264/90000", answer, re.MULTILINE)
            assert re.search(r"^a=rtpmap:111 opus/48000/2", answer, re.MULTILINE)
            assert "a=recvonly" in answer
            await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
            frame = await asyncio.to_thread(studio.until, lambda: studio.camera.get(0.1))
            assert frame.rgb.shape == (120, 160, 3)
            assert abs(int(frame.rgb.mean()) - 90) < 4
            assert (await http.delete(f"{address.rstrip('/')}{session}")).status == 200
        await pc.close()

    asyncio.run(scenario())
    studio.until(lambda: studio.camera_events == [True, False])

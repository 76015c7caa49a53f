"""Offers as programs other than browsers make them: they are answered, and their pictures arrive."""

from __future__ import annotations

import asyncio
import re
from fractions import Fraction
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
from aiortc import AudioStreamTrack, MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

# The shape that libdatachannel gives to the offers of OBS: ICE, DTLS and BUNDLE for the whole session, groups for lip
# synchronisation, H.264 and Opus alone, rtcp-mux, no extensions.
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


class Film(MediaStreamTrack):
    """Grey pictures, 20 a second."""

    kind = "video"
    sent = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(0.05)
        frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 90, np.uint8), format="rgb24")
        frame.pts, frame.time_base = self.sent * 4500, Fraction(1, 90000)
        self.sent += 1
        return frame


def as_obs(offer: str, profile: str) -> str:
    """What OBS would offer in place of a peer that speaks with the keys and from the ports of ``offer``."""

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


@pytest.mark.timeout(60)
@pytest.mark.parametrize("profile", ["42e01f", "42001f"])
def test_obs_publishes_its_picture_and_its_sound(studio: Any, profile: str) -> None:
    async def scenario() -> None:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        pc.addTransceiver(AudioStreamTrack(), direction="sendonly")
        video = pc.addTransceiver(Film(), direction="sendonly")
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

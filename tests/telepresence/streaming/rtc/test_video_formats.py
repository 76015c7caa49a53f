"""H.264 of every profile is received by WHIP; what cannot be decoded is refused with what to set."""

from __future__ import annotations

import asyncio
import datetime
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import av
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from insta_runtime.errors import UserError
from telepresence.streaming.rtc.video_formats import as_baseline, as_offered, check_codecs
from tests.support.grey_video import GreyVideo

Rewrite = Callable[[str], str]


def with_formats(offer: str, formats: dict[int, str], fmtp: dict[int, str]) -> str:
    """``offer`` with other video formats: codec names and format parameters by payload type."""
    lines = []
    of_format = re.compile(r"a=(?:rtpmap|fmtp|rtcp-fb):\d+ ")
    for line in offer.split("\r\n"):
        if line.startswith("m=video"):
            lines.append(" ".join([*line.split(" ")[:3], *map(str, formats)]))
        elif line.startswith("a=mid:"):
            lines.append(line)
            lines += [f"a=rtpmap:{payload} {codec}/90000" for payload, codec in formats.items()]
            lines += [f"a=fmtp:{payload} {text}" for payload, text in fmtp.items()]
            lines += [f"a=rtcp-fb:{payload} nack pli" for payload in formats]
        elif not of_format.match(line):
            lines.append(line)
    return "\r\n".join(lines)


async def publish(studio: Any, rewrite: Rewrite) -> tuple[int, str, Any]:
    """Send H.264 by an offer that ``rewrite`` has changed: status, body of the answer, and a frame that arrived."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    video = pc.addTransceiver(GreyVideo(), direction="sendonly")
    h264 = [c for c in video.sender.getCapabilities("video").codecs if c.mimeType == "video/H264"]
    video.setCodecPreferences([c for c in h264 if c.parameters["profile-level-id"] == "42e01f"])
    await pc.setLocalDescription(await pc.createOffer())
    payload = re.findall(r"a=rtpmap:(\d+) H264", pc.localDescription.sdp)[0]
    offer = rewrite(pc.localDescription.sdp)
    async with aiohttp.ClientSession() as http:
        headers = {"Content-Type": "application/sdp"}
        async with http.post(f"{studio.server.address}whip", data=offer, headers=headers) as response:
            status, answer = response.status, await response.text()
    frame = None
    if status == 201:
        # The peer itself sends what it knows, under the payload type that was agreed upon.
        agreed = re.findall(r"a=rtpmap:(\d+) H264", answer)[0]
        plain = with_formats(
            answer, {int(agreed): "H264"}, {int(agreed): "profile-level-id=42e01f;packetization-mode=1"}
        )
        assert payload == agreed
        await pc.setRemoteDescription(RTCSessionDescription(plain, "answer"))
        frame = await asyncio.to_thread(studio.until, lambda: studio.camera.get(0.1))
    await pc.close()
    return status, answer, frame


@pytest.mark.parametrize(
    "parameters",
    [
        "profile-level-id=4d001f;packetization-mode=1;level-asymmetry-allowed=1",
        "profile-level-id=640028;packetization-mode=1;level-asymmetry-allowed=1",
        "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=64000c",
        "profile-level-id=42e01f;packetization-mode=0",
        "profile-level-id=42e01f",
        "profile-level-id=640C34;packetization-mode=1",
        "profile-level-id=f4001f;packetization-mode=1",
        "packetization-mode=1",
        "",
    ],
)
def test_every_profile_is_received_and_the_answer_repeats_it(studio: Any, parameters: str) -> None:
    def rewrite(offer: str) -> str:
        payload = int(re.findall(r"a=rtpmap:(\d+) H264", offer)[0])
        return with_formats(offer, {payload: "H264"}, {payload: parameters} if parameters else {})

    status, answer, frame = asyncio.run(publish(studio, rewrite))
    assert status == 201, answer
    assert re.findall(r"a=fmtp:\d+ ([^\r\n]*)", answer) == ([parameters] if parameters else [])
    assert frame.rgb.shape == (120, 160, 3)
    assert abs(int(frame.rgb.mean()) - 90) < 4


def test_h264_is_taken_from_a_mix_with_codecs_that_cannot_be_decoded(studio: Any) -> None:
    def rewrite(offer: str) -> str:
        payload = int(re.findall(r"a=rtpmap:(\d+) H264", offer)[0])
        formats = {45: "AV1", 46: "VP9", 47: "H265", payload: "H264"}
        return with_formats(
            offer, formats, {46: "profile-id=0", payload: "profile-level-id=640028;packetization-mode=1"}
        )

    status, answer, frame = asyncio.run(publish(studio, rewrite))
    assert status == 201, answer
    assert not re.search("AV1|VP9|H265", answer)
    assert "profile-level-id=640028" in answer
    assert frame.rgb.shape == (120, 160, 3)


@pytest.mark.parametrize(
    ("formats", "fmtp", "told"),
    [
        ({96: "VP9"}, {}, "video in VP9 only: set the encoder to H.264 or VP8"),
        ({96: "AV1", 98: "rtx"}, {98: "apt=96"}, "video in AV1 only: set the encoder to H.264 or VP8"),
        ({96: "H265", 97: "VP9"}, {}, "video in H.265, VP9 only: set the encoder to H.264 or VP8"),
        ({96: "theora"}, {}, "video in other codecs only: set the encoder to H.264 or VP8"),
        ({96: "H264"}, {96: "packetization-mode=2;profile-level-id=42e01f"}, "set packetization-mode to 1"),
    ],
)
def test_a_refusal_says_what_to_set(studio: Any, formats: dict[int, str], fmtp: dict[int, str], told: str) -> None:
    status, answer, _ = asyncio.run(publish(studio, lambda offer: with_formats(offer, formats, fmtp)))
    assert status == 400
    assert told in answer
    assert answer.count("\n") == 1


SOUND = "v=0\r\nm=video 9 X 96\r\na=rtpmap:96 H264/90000\r\nm=audio 9 X 97\r\na=rtpmap:97 {}\r\n"


@pytest.mark.parametrize("codec", ["MPEG4-GENERIC/48000/2", "L16/44100/2"])
def test_audio_that_cannot_be_received_is_refused_with_what_to_set(codec: str) -> None:
    with pytest.raises(UserError, match="set the audio encoder to Opus"):
        check_codecs(SOUND.format(codec), sends_video=True)


def test_a_viewer_without_a_common_codec_reads_which_ones_there_are() -> None:
    with pytest.raises(UserError, match=r"video in VP9 only: ask for H\.264 or VP8"):
        check_codecs("v=0\r\nm=video 9 X 96\r\na=rtpmap:96 VP9/90000\r\n", sends_video=False)


def test_only_h264_of_the_video_section_is_rewritten_and_restored() -> None:
    offer = "\r\n".join(
        [
            *("v=0", "m=audio 9 X 96 111", "a=rtpmap:111 opus/48000/2", "a=fmtp:111 useinbandfec=1"),
            *("m=video 9 X 96 97 98 99", "a=fmtp:96 profile-level-id=640028", "a=rtpmap:96 H264/90000"),
            *("a=rtpmap:97 rtx/90000", "a=fmtp:97 apt=96", "a=rtpmap:98 VP8/90000", "a=fmtp:98 max-fr=60"),
            *("a=rtpmap:99 h264/90000", "a=fmtp:99 packetization-mode=2;profile-level-id=42e01f", ""),
        ]
    )
    plain = as_baseline(offer)
    assert "a=fmtp:96 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f" in plain
    assert "640028" not in plain
    for line in (
        "a=fmtp:111 useinbandfec=1",
        "a=fmtp:97 apt=96",
        "a=fmtp:98 max-fr=60",
        "a=fmtp:99 packetization-mode=2",
    ):
        assert line in plain
    assert sorted(as_offered(plain, offer).split("\r\n")) == sorted(offer.split("\r\n"))


def certificate_files(folder: Path, curve: ec.EllipticCurve) -> list[str]:
    """Files of a self-signed certificate on ``curve`` and of its key."""
    key = ec.generate_private_key(curve)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sender")])
    now = datetime.datetime.now(tz=datetime.UTC)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    (folder / "cert.pem").write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(text)
    return [str(folder / "cert.pem"), str(folder / "key.pem")]


def run_ffmpeg(studio: Any, profile: str, certificate: list[str]) -> subprocess.Popen[bytes]:
    """FFmpeg's WHIP muxer, sending to ``studio``."""
    if "whip" not in av.formats_available:
        pytest.skip("the FFmpeg of PyAV has no WHIP muxer")
    arguments = [f"{studio.server.address}whip", profile, "600", *certificate]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.whip_sender", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("profile", ["baseline", "main", "high"])
def test_ffmpeg_publishes_each_profile_of_x264(studio: Any, tmp_path: Path, profile: str) -> None:
    sender = run_ffmpeg(studio, profile, certificate_files(tmp_path, ec.SECP256R1()))
    try:
        frame = studio.until(lambda: studio.camera.get(0.1))
    finally:
        sender.kill()
        sender.wait()
    assert frame.rgb.shape == (120, 160, 3)
    assert 85 < int(frame.rgb.mean()) < 105
    assert studio.server.stream_stats().failed == 0


def test_ffmpegs_own_certificate_is_named_as_the_reason(studio: Any, caplog: pytest.LogCaptureFixture) -> None:
    sender = run_ffmpeg(studio, "baseline", [])
    try:
        studio.until(lambda: studio.server.stream_stats().failed or studio.camera.get(0.1) is not None)
    finally:
        sender.kill()
        sender.wait()
    stats = studio.server.stream_stats()
    if not stats.failed:
        pytest.skip("this FFmpeg makes a certificate that TLS allows")
    assert stats.failed == 1
    assert "DTLS: its certificate is on the curve secp224r1" in (stats.failure or "")
    assert "cert_file" in (stats.failure or "")
    assert "a camera could not connect: DTLS: its certificate" in caplog.text

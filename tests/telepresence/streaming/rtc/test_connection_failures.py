"""DTLS with the certificates and cipher suites of other programs, and the reasons of connections that fail."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiortc import RTCCertificate, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL

from telepresence.streaming.rtc import peers
from tests.support.grey_video import GreyVideo


class PeerCertificate(RTCCertificate):
    """Certificate of a peer that knows only the cipher suites ``ciphers``."""

    ciphers = b"DEFAULT"

    def _create_ssl_context(self, srtp_profiles: list[Any]) -> SSL.Context:
        context = super()._create_ssl_context(srtp_profiles)
        context.set_cipher_list(self.ciphers)
        return context


def certificate(key: Any, ciphers: str) -> PeerCertificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "peer")])
    now = datetime.datetime.now(tz=datetime.UTC)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    made = PeerCertificate(key, built.sign(key, hashes.SHA256()))
    made.ciphers = ciphers.encode()
    return made


def p256() -> Any:
    return ec.generate_private_key(ec.SECP256R1())


async def publish(
    studio: Any,
    own: RTCCertificate,
    arrived: Callable[[], Any],
    setup: str = "actpass",
    rewrite: Callable[[str], str] = str,
    answers_dtls: bool = True,
    connects: bool = True,
) -> Any:
    """Send a camera with the certificate ``own`` until ``arrived`` returns a true value, which is returned."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    vars(pc)["_RTCPeerConnection__certificates"] = [own]
    video = pc.addTransceiver(GreyVideo(), direction="sendonly")
    if not answers_dtls:

        async def start(_parameters: Any) -> None:
            await asyncio.sleep(0)

        vars(video.sender.transport)["start"] = start
    await pc.setLocalDescription(await pc.createOffer())
    offer = rewrite(pc.localDescription.sdp.replace("a=setup:actpass", f"a=setup:{setup}"))
    async with aiohttp.ClientSession() as http:
        headers = {"Content-Type": "application/sdp"}
        async with http.post(f"{studio.server.address}whip", data=offer, headers=headers) as response:
            answer = await response.text()
            assert response.status == 201, answer
    if connects:
        await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    found = await asyncio.to_thread(studio.until, arrived)
    await pc.close()
    return found


@pytest.mark.parametrize("setup", ["actpass", "active"])
@pytest.mark.parametrize(
    ("make", "ciphers"),
    [
        (lambda: rsa.generate_private_key(65537, 2048), "ECDHE-RSA-AES128-GCM-SHA256"),
        (lambda: rsa.generate_private_key(65537, 2048), "DEFAULT"),
        (p256, "ECDHE-ECDSA-AES256-GCM-SHA384"),
        (p256, "ECDHE-ECDSA-AES128-SHA"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ],
    ids=["RSA only", "RSA", "AES-256", "CBC", "P-384"],
)
def test_cameras_connect_by_dtls_with_common_certificates_and_ciphers(
    studio: Any, make: Callable[[], Any], ciphers: str, setup: str
) -> None:
    if setup == "active" and ciphers.startswith("ECDHE-RSA"):
        ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256"  # as a client it takes the daemon's certificate, which is ECDSA
    own = certificate(make(), ciphers)
    frame = asyncio.run(publish(studio, own, lambda: studio.camera.get(0.1), setup))
    assert frame.rgb.shape == (120, 160, 3)
    assert studio.server.stream_stats().failure is None


def wrong_fingerprint(offer: str) -> str:
    return re.sub(r"a=fingerprint:(\S+) ..", r"a=fingerprint:\1 FF", offer).replace("FF:FF", "FF:00", 1)


@pytest.mark.parametrize(
    ("ciphers", "options", "reason"),
    [
        ("ECDHE-ECDSA-AES128-SHA256", {}, r"DTLS: .* no cipher suite, curve or signature in common \(alert 40\)"),
        ("ECDHE-ECDSA-AES128-SHA256", {"setup": "active"}, r"DTLS: .* no cipher suite.* in common \(alert 40\)"),
        ("DEFAULT", {"rewrite": wrong_fingerprint}, r"DTLS: its certificate does not have the fingerprint in its SDP"),
        ("DEFAULT", {"answers_dtls": False}, r"DTLS: it does not answer the handshake"),
        ("DEFAULT", {"connects": False}, r"ICE: none of its addresses answers; UDP may be blocked .*"),
    ],
    ids=["no cipher, as server", "no cipher, as client", "fingerprint", "silent", "no address"],
)
def test_status_and_log_say_why_a_peer_could_not_connect(
    studio: Any,
    ciphers: str,
    options: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "CONNECT_S", 4.0)
    own = certificate(p256(), ciphers)
    failure = asyncio.run(publish(studio, own, lambda: studio.server.stream_stats().failure, **options))
    assert re.fullmatch(reason, failure), failure
    assert studio.server.stream_stats().failed == 1
    assert f"a camera could not connect: {failure}" in caplog.text
    assert studio.camera_events == []

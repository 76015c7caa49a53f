"""The server over IPv4, IPv6 and by name: pages, viewers, publishing, ICE servers, and what other machines reach."""

from __future__ import annotations

import asyncio
import datetime
import http.client
import ipaddress
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.rtcicetransport import connection_kwargs, parse_stun_turn_uri
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from insta_runtime.errors import UserError
from telepresence.streaming.http.access import AccessPolicy, ClientRequest
from telepresence.streaming.http.settings import AccessSettings
from telepresence.streaming.rtc.aiortc_hooks import broaden_dtls
from telepresence.streaming.rtc.ice import IceServers
from telepresence.streaming.rtc.offer import parse_offer
from telepresence.streaming.rtc.settings import IceSettings, PublishSettings
from telepresence.streaming.settings import StreamSettings

TOKEN = "correct-horse-battery"


async def watch(address: str, headers: dict[str, str]) -> None:
    """Receive one frame of the avatar from the server at ``address``."""
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    receiver = pc.addTransceiver("video", direction="recvonly").receiver
    await pc.setLocalDescription(await pc.createOffer())
    async with aiohttp.ClientSession() as session:
        sdp = {"Content-Type": "application/sdp", **headers}
        async with session.post(f"{address}whep", data=pc.localDescription.sdp, headers=sdp) as response:
            answer = await response.text()
            assert response.status == 201, answer
    await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await asyncio.wait_for(receiver.track.recv(), 120)
    await pc.close()


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("::1%lo", "[::1]"),
        ("localhost", "localhost"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_viewer_watches_over_ipv4_ipv6_and_by_name(studio_type: type[Any], host: str, shown: str) -> None:
    with studio_type(host=host) as studio:
        address = studio.server.address
        assert address.startswith(f"http://{shown}:")
        origin = {"Origin": address.rstrip("/")}
        asyncio.run(watch(address, origin))
        url = urlsplit(address)
        for name, status in ((f"[::1]:{url.port}", 200), ("[2001:db8::1]", 403), ("[::1", 403), ("[::]", 403)):
            connection = http.client.HTTPConnection(url.hostname or "", url.port or 0, timeout=600)
            connection.request("GET", "/status", headers={"Host": name})
            assert connection.getresponse().status == status, name
            connection.close()


def certificate_files(folder: Path) -> tuple[str, str]:
    """Files of a self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(tz=datetime.UTC)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    names = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
    built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    (folder / "cert.pem").write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(text)
    return str(folder / "cert.pem"), str(folder / "key.pem")


@pytest.mark.parametrize(("host", "reached"), [("::", {"127.0.0.1", "::1"}), ("0.0.0.0", {"127.0.0.1"})])
def test_all_addresses_need_token_and_tls_and_are_all_reached(
    studio_type: type[Any], tmp_path: Path, host: str, reached: set[str]
) -> None:
    with pytest.raises(UserError, match="without a token and TLS"):
        StreamSettings(host=host).check()
    certificate, key = certificate_files(tmp_path)
    access = AccessSettings(token=TOKEN, tls_cert=certificate, tls_key=key)
    context = ssl.create_default_context(cafile=certificate)
    with studio_type(host=host, access=access) as studio:
        port = urlsplit(studio.server.address).port or 0
        for address in reached:
            connection = http.client.HTTPSConnection(address, port, timeout=600, context=context)
            connection.request("GET", "/status", headers={"Authorization": f"Bearer {TOKEN}"})
            assert connection.getresponse().status == 200
            connection.close()


@pytest.mark.parametrize(
    "host", ["::", "[::]", "0.0.0.0", "::ffff:0.0.0.0", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%lo"]
)
def test_what_other_machines_reach_needs_token_and_tls(host: str) -> None:
    with pytest.raises(UserError, match="without a token and TLS"):
        StreamSettings(host=host).check()


@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost", "::ffff:127.0.0.1", "127.0.0.2", "0:0::1"])
def test_loopback_needs_neither(host: str) -> None:
    StreamSettings(host=host).check()


def test_an_unknown_name_is_refused_before_anything_starts(tmp_path: Path) -> None:
    certificate, key = certificate_files(tmp_path)
    access = AccessSettings(token=TOKEN, tls_cert=certificate, tls_key=key)
    for host in ("no-such-name.invalid", "[::g]", "*"):
        with pytest.raises(UserError, match="is not known"):
            StreamSettings(host=host, access=access).check()


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        *(("[::1]:8080", True), ("[::ffff:127.0.0.1]:8080", True), ("[0:0:0:0:0:0:0:1]", True)),
        *(("[::]", False), ("[::ffff:192.0.2.1]", False), ("[2001:db8::1]:8080", False), ("::1", False)),
    ],
)
def test_host_headers_with_ipv6_addresses(host: str, allowed: bool) -> None:
    rules = AccessPolicy(AccessSettings(), "::1", 8080)
    own = ClientRequest("POST", "/whep", "", "::1", host, origin=f"http://{host}")
    assert (rules.check(own) is None) == allowed


def test_frames_are_published_over_ipv6_with_a_token(studio_type: type[Any]) -> None:
    with studio_type(host="::1", access=AccessSettings(token=TOKEN)) as server:
        publish = PublishSettings(f"{server.server.address}whip", TOKEN)
        publish.check()
        with studio_type(publish=publish) as studio:
            assert studio.until(lambda: server.camera.get(0.1)).rgb.shape == (512, 512, 3)
    with pytest.raises(UserError, match="unencrypted"):
        PublishSettings("http://[2001:db8::1]/whip", TOKEN).check()


@pytest.mark.parametrize(
    ("servers", "hosts"),
    [
        ("stun:[::1]:9", {}),
        ("stun:127.0.0.1:9", {"stun_server": ("127.0.0.1", 9)}),
        ("turn:[2001:db8::1]:3479?transport=tcp", {"turn_server": ("2001:db8::1", 3479)}),
        ("turns:[::1]", {"turn_server": ("::1", 5349)}),
        ("stun:[::1] turn:turn.example.org:1", {"turn_server": ("turn.example.org", 1)}),
        ("turn:192.0.2.1", {"turn_server": ("192.0.2.1", 3478)}),
    ],
)
def test_ice_servers_may_have_ipv6_addresses(servers: str, hosts: dict[str, tuple[str, int]]) -> None:
    broaden_dtls()
    settings = IceSettings(servers, turn_secret="between us")
    settings.check()
    given = IceServers(settings)
    assert [server.url for server in given.servers()] == servers.split()
    found = connection_kwargs(given.configuration().iceServers)
    assert {key: found[key] for key in found if key in ("stun_server", "turn_server")} == hosts


@pytest.mark.parametrize(
    "url",
    ["stun:::1", "stun:[::g]", "turn:[::1", "stun:[1:2]:3", "stun:h:0", "stun:h:99999", "turn:1.2.3.999", "stun:a?b"],
)
def test_what_is_no_ice_server_is_refused_before_a_viewer_comes(url: str) -> None:
    with pytest.raises(UserError, match="not a STUN or TURN server"):
        IceSettings(url, turn_secret="between us").check()


def test_other_malformed_turn_urls_are_still_refused_by_aiortc() -> None:
    broaden_dtls()
    for url in ("turn:[::1", "turn:::1", "turn:"):
        with pytest.raises(ValueError, match="malformed"):
            parse_stun_turn_uri(url)


def test_a_viewer_is_answered_while_a_turn_server_over_ipv6_is_out_of_reach(studio_type: type[Any]) -> None:
    with studio_type(ice=IceSettings("turn:[::1]:9?transport=tcp", turn_secret="between us")) as studio:
        asyncio.run(watch(studio.server.address, {}))


def test_a_hidden_candidate_becomes_the_ipv4_address_of_its_request() -> None:
    lines = ["v=0", "m=video 9 X 96", "a=candidate:1 1 udp 1 f3825127.local 5 typ host", ""]
    assert "udp 1 192.0.2.7 5" in parse_offer("\r\n".join(lines).encode(), "::ffff:192.0.2.7").sdp

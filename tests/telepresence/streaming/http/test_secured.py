"""A daemon with token and TLS; limits on requests and connections."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from insta_runtime.errors import UserError
from telepresence.streaming import DaemonInterface, MediaServer, StreamSettings
from telepresence.streaming.http.settings import AccessSettings
from telepresence.streaming.rtc.settings import IceSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TOKEN = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
SDP = {"Content-Type": "application/sdp"}
OFFER = b"v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=recvonly\r\n"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a self-signed certificate for this machine, and of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(cert_file), str(key_file)


def ask(
    server: MediaServer,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    trusted: str | None = None,
) -> http.client.HTTPResponse:
    """Send a request; ``trusted``: path of the certificate that the daemon must have."""
    url = urlsplit(server.address)
    host, port = url.hostname or "", url.port
    if trusted is not None:
        context = ssl.create_default_context(cafile=trusted)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, timeout=600, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=600)
    connection.request(method, path, body or None, headers or {})
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def test_a_browser_logs_in_by_the_token_and_stays_by_the_cookie(
    studio_type: type[Any], certificate: tuple[str, str], chromium: Browser
) -> None:
    cert, key = certificate
    with studio_type(host="0.0.0.0", access=AccessSettings(TOKEN, cert, key)) as studio:
        server = studio.server
        assert server.address.startswith("https://127.0.0.1:")
        for path in ("/", "/app.js", "/status", "/metrics", "/background", "/ice", "/nowhere"):
            assert ask(server, "GET", path, trusted=cert).status == 401
        assert ask(server, "POST", "/whep", SDP, OFFER, trusted=cert).status == 401
        assert ask(server, "DELETE", "/session/" + "0" * 32, trusted=cert).status == 401
        assert ask(server, "GET", "/status", BEARER, trusted=cert).status == 200
        with pytest.raises((OSError, http.client.HTTPException)):  # unencrypted
            ask(MediaServerAt(server.address.replace("https", "http")), "GET", "/status", BEARER)

        context = chromium.new_context(ignore_https_errors=True)
        page = context.new_page()
        assert page.goto(server.address).status == 401
        page.get_by_label("Token").fill("open sesame")
        page.keyboard.press("Enter")
        page.get_by_text("That is not the token").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button").click()
        page.wait_for_url(server.address)  # the token is removed from the URL
        (cookie,) = context.cookies()
        assert cookie["httpOnly"]
        assert cookie["secure"]
        assert cookie["sameSite"] == "Strict"
        studio.watching(page)
        context.close()


class MediaServerAt:
    """In place of a server, with another address."""

    def __init__(self, address: str) -> None:
        self.address = address


def test_unusable_tls_files_are_refused(certificate: tuple[str, str], tmp_path: Path) -> None:
    cert, key = certificate
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("hello")
    for one, other in ((cert, str(nonsense)), (str(nonsense), key), (cert, cert), (key, key)):
        with pytest.raises(UserError, match=r"TLS cannot use .* PEM") as refused:
            MediaServer(StreamSettings(access=AccessSettings(tls_cert=one, tls_key=other)), DaemonInterface())
        assert "\n" not in str(refused.value)


def test_a_key_of_another_certificate_is_refused(certificate: tuple[str, str], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def write(name: str, encryption: serialization.KeySerializationEncryption) -> str:
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        (tmp_path / name).write_bytes(pem)
        return str(tmp_path / name)

    other = write("other.pem", serialization.NoEncryption())
    locked = write("locked.pem", serialization.BestAvailableEncryption(b"secret"))
    for key, words in ((other, "does not belong to the certificate"), (locked, "without a passphrase")):
        with pytest.raises(UserError, match=words):
            MediaServer(StreamSettings(access=AccessSettings(tls_cert=certificate[0], tls_key=key)), DaemonInterface())


def test_pages_of_an_allowed_origin_may_watch(studio_type: type[Any]) -> None:
    origin = "https://show.example"
    with studio_type(access=AccessSettings(token=TOKEN, origins=origin)) as studio:
        server = studio.server
        wish = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"}
        preflight = ask(server, "OPTIONS", "/whep", wish)
        assert preflight.status == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == origin
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in preflight.headers
        assert (
            ask(server, "OPTIONS", "/session/" + "0" * 32, wish | {"Access-Control-Request-Method": "DELETE"}).status
            == 204
        )

        answer = ask(server, "POST", "/whep", {"Origin": origin, **SDP}, OFFER)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (401, origin)
        answer = ask(server, "POST", "/whep", {"Origin": origin, **SDP, **BEARER}, OFFER)
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert "Location" in answer.headers["Access-Control-Expose-Headers"]
        assert answer.headers["Vary"] == "Origin"

        foreign = ask(server, "OPTIONS", "/whep", wish | {"Origin": "https://evil.example"})
        assert foreign.status == 403
        assert "Access-Control-Allow-Origin" not in foreign.headers
        assert "Access-Control-Allow-Origin" not in ask(server, "GET", "/healthz").headers
        assert ask(server, "OPTIONS", "/whip").headers["Accept-Post"] == "application/sdp"


def test_ice_servers_have_credentials_that_expire(studio_type: type[Any]) -> None:
    ice = IceSettings("stun:127.0.0.1:9 turn:127.0.0.1:9?transport=tcp", "between us", 600)
    with studio_type(ice=ice) as studio:
        before = int(time.time())
        stun, turn = json.loads(ask(studio.server, "GET", "/ice").body)["iceServers"]  # type: ignore[attr-defined]
        assert stun == {"urls": "stun:127.0.0.1:9"}
        assert turn["urls"] == "turn:127.0.0.1:9?transport=tcp"
        end, _, name = turn["username"].partition(":")
        assert before + 600 <= int(end) <= time.time() + 600
        assert name == "telepresence"
        digest = hmac.new(b"between us", turn["username"].encode(), hashlib.sha1).digest()
        assert turn["credential"] == base64.b64encode(digest).decode()
    with studio_type() as studio:
        assert json.loads(ask(studio.server, "GET", "/ice").body) == {"iceServers": []}  # type: ignore[attr-defined]


def test_refusals_are_logged_briefly_and_without_secrets(
    studio_type: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    session = "0123456789abcdef" * 2
    with caplog.at_level(logging.DEBUG), studio_type(access=AccessSettings(token=TOKEN)) as studio:
        for _ in range(6):
            ask(studio.server, "GET", f"/?token=nearly-{TOKEN}")
            ask(studio.server, "DELETE", f"/session/{session}")
            ask(studio.server, "GET", "/%0d%0aforged", {"Host": "evil.example"})
            ask(studio.server, "POST", "/whep", {"Origin": "http://evil.example", **BEARER})
    refused = [record for record in caplog.records if getattr(record, "event", None) == "refused"]
    assert {record.fields["reason"] for record in refused} >= {
        "wrong token",
        "no token",
        "foreign Host",
        "foreign Origin",
    }
    assert len(refused) < 12
    assert TOKEN not in caplog.text
    assert session not in caplog.text
    assert "forged" not in caplog.text
    assert "evil" not in caplog.text


def test_too_many_requests_get_a_retry_after_header(studio_type: type[Any]) -> None:
    with studio_type(access=AccessSettings(offers=4)) as studio:
        answers = [ask(studio.server, "POST", "/whep", SDP, b"nonsense") for _ in range(3)]
        assert [answer.status for answer in answers] == [400, 429, 429]
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 16
        assert ask(studio.server, "GET", "/status").status == 200


def connect(server: MediaServer) -> socket.socket:
    url = urlsplit(server.address)
    return socket.create_connection((url.hostname or "", url.port or 0), 20)


def test_slow_requests_are_ended(studio_type: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telepresence.streaming.http.routes.BODY_S", 1.0)
    monkeypatch.setattr("telepresence.streaming.http.listener.IDLE_S", 1.0)
    with studio_type() as studio:
        host = urlsplit(studio.server.address).netloc
        head = f"POST /whep HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/sdp\r\nContent-Length: 999\r\n"
        with connect(studio.server) as body, connect(studio.server) as header, connect(studio.server) as nothing:
            body.sendall(f"{head}\r\nv=0".encode())
            header.sendall(head.encode())
            assert body.recv(100).startswith(b"HTTP/1.1 408")
            assert header.recv(100) == b""
            assert nothing.recv(100) == b""
        assert ask(studio.server, "GET", "/healthz").status == 200


def test_the_number_of_connections_is_limited(studio_type: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telepresence.streaming.http.listener.MAX_CONNECTIONS", 4)
    with studio_type() as studio:
        held = [connect(studio.server) for _ in range(4)]
        studio.until(lambda: closes_new_connections(studio.server))
        for connection in held:
            connection.close()
        studio.until(lambda: reachable(studio.server))


def closes_new_connections(server: MediaServer) -> bool:
    """Whether one more connection is closed at once."""
    with connect(server) as connection:
        connection.settimeout(1.0)
        try:
            return connection.recv(100) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


def reachable(server: MediaServer) -> bool:
    try:
        return ask(server, "GET", "/healthz").status == 200
    except OSError:
        return False

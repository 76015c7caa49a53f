"""Answers of the HTTP routes, also to malformed and hostile requests."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import math
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from insta_runtime.errors import UserError
from telepresence.streaming import DaemonInterface, MediaServer, StreamSettings

SDP = {"Content-Type": "application/sdp"}


def ask(
    server: MediaServer, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    url = urlsplit(server.address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=600)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def offer(direction: str = "recvonly", candidates: int = 0) -> bytes:
    """An SDP offer made by aiortc, as a peer would send it."""
    from aiortc import RTCConfiguration, RTCPeerConnection

    async def make() -> str:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        pc.addTransceiver("video", direction=direction)
        await pc.setLocalDescription(await pc.createOffer())
        sdp = str(pc.localDescription.sdp)
        await pc.close()
        return sdp

    extra = "a=candidate:1 1 udp 2130706431 192.0.2.1 9 typ host\r\n" * candidates
    return (asyncio.run(make()) + extra).encode()


JSON = {"Content-Type": "application/json"}


def test_the_background_can_be_read_and_chosen(studio: Any) -> None:
    status, _, body = ask(studio.server, "GET", "/background")
    assert status == 200
    assert json.loads(body) == {"background": "torso", "choices": ["calm", "room"]}
    for background in ("torso+room", "#102030", "calm"):
        sent = json.dumps({"background": background}).encode()
        assert ask(studio.server, "PUT", "/background", sent, JSON)[0] == 204
        assert str(studio.backgrounds.chosen) == background


@pytest.mark.parametrize(
    ("body", "headers", "wanted"),
    [
        (b'{"background": "/etc/passwd"}', JSON, 400),
        (b'{"background": "torso+../avatar.safetensors"}', JSON, 400),
        (b'{"background": 7}', JSON, 400),
        (b'["room"]', JSON, 400),
        (b"room", JSON, 400),
        (b"[" * 1000, JSON, 400),
        (b'{"background": "' + b"x" * 2000 + b'"}', JSON, 400),
        (b'{"background": "#12345"}', JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (
            b'{"background": "room"}',
            {"Content-Type": "text/plain"},
            415,
        ),  # what a foreign page can send without preflight
        (b'{"background": "room"}', JSON | {"Origin": "http://evil.example"}, 403),
        (b'{"background": "room"}', JSON | {"Host": "evil.example"}, 403),
    ],
)
def test_invalid_background_requests_change_nothing(
    studio: Any, body: bytes, headers: dict[str, str], wanted: int
) -> None:
    status, _, answer = ask(studio.server, "PUT", "/background", body, headers)
    assert status == wanted
    assert answer.count(b"\n") == 1
    assert str(studio.backgrounds.chosen) == "torso"


def test_the_identity_question_is_answered_while_it_is_open(studio: Any) -> None:
    yes, no = b'{"same": true}', b'{"same": false}'
    assert ask(studio.server, "POST", "/person", yes, JSON)[0] == 409
    for sent, same in ((yes, True), (no, False)):
        studio.status["subject"] = {"question_open": True}
        assert ask(studio.server, "POST", "/person", sent, JSON)[0] == 204
        assert studio.answers.pop() is same


@pytest.mark.parametrize(
    ("body", "headers", "wanted"),
    [
        (b'{"same": "yes"}', JSON, 400),
        (b'{"same": 1}', JSON, 400),
        (b"true", JSON, 400),
        (b"", JSON, 400),
        (b'{"same": true}', {"Content-Type": "text/plain"}, 415),
        (b'{"same": true}', JSON | {"Origin": "http://evil.example"}, 403),
        (b'{"same": true}', JSON | {"Host": "evil.example"}, 403),
    ],
)
def test_invalid_identity_answers_are_refused(studio: Any, body: bytes, headers: dict[str, str], wanted: int) -> None:
    studio.status["subject"] = {"question_open": True}
    status, _, answer = ask(studio.server, "POST", "/person", body, headers)
    assert status == wanted
    assert answer.count(b"\n") == 1
    assert studio.answers == []


def test_page_and_its_headers(studio: Any) -> None:
    status, headers, body = ask(studio.server, "GET", "/")
    assert status == 200
    assert b"<title>Telepresence</title>" in body
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for path in re.findall(rb'(?:src|href)="([^"]+)"', body):
        assert path.startswith(b"/")  # nothing from other servers
        assert ask(studio.server, "GET", path.decode())[0] == 200


def test_health_status_and_metrics(studio: Any) -> None:
    assert ask(studio.server, "GET", "/healthz")[0] == 200
    studio.status.update(state="live", psnr_db=math.nan, head={"fps": math.inf}, drops=[1, 2])
    status, _, body = ask(studio.server, "GET", "/status")
    assert status == 200
    status_read = json.loads(body)
    assert status_read.pop("background") == "torso"
    assert status_read == {"state": "live", "psnr_db": None, "head": {"fps": None}, "drops": [1, 2]}
    assert ask(studio.server, "GET", "/metrics")[2] == b"up 1\n"


def test_whep_answers_an_offer_and_delete_ends_the_session(studio: Any) -> None:
    status, headers, body = ask(studio.server, "POST", "/whep", offer(), SDP)
    assert status == 201
    assert headers["Content-Type"].startswith("application/sdp")
    assert b"a=sendonly" in body
    assert b"H264/90000" in body
    session = headers["Location"]
    assert re.fullmatch(r"/session/[0-9a-f]{32}", session)
    assert ask(studio.server, "PATCH", session)[0] == 405
    assert ask(studio.server, "DELETE", session)[0] == 200
    assert ask(studio.server, "DELETE", session)[0] == 404
    assert ask(studio.server, "DELETE", "/session/" + "0" * 32)[0] == 404


def test_viewer_limit_and_second_camera() -> None:
    server = MediaServer(StreamSettings(port=0, viewers=1), DaemonInterface())
    server.start()
    try:
        _, headers, _ = ask(server, "POST", "/whep", offer(), SDP)
        status, full, body = ask(server, "POST", "/whep", offer(), SDP)
        assert (status, full["Retry-After"]) == (503, "5")
        assert b"viewers" in body
        ask(server, "DELETE", headers["Location"])
        assert ask(server, "POST", "/whep", offer(), SDP)[0] == 201

        status, headers, body = ask(server, "POST", "/whip", offer("sendonly"), SDP)
        assert status == 201
        assert b"a=recvonly" in body
        assert ask(server, "POST", "/whip", offer("sendonly"), SDP)[0] == 409
        ask(server, "DELETE", headers["Location"])
        assert ask(server, "POST", "/whip", offer("sendonly"), SDP)[0] == 201
    finally:
        server.stop()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "not text": lambda: b"\xff\xfe\x00v=0",
    "not sdp": lambda: b"{}",
    "only a version": lambda: b"v=0\r\n",
    "audio alone": lambda: offer().replace(b"m=video", b"m=audio"),
    "wrong direction": lambda: offer("sendonly"),
    "many sections": lambda: offer() + b"m=video 9 UDP/TLS/RTP/SAVPF 96\r\n" * 40,
    "many candidates": lambda: offer(candidates=200),
    "many lines": lambda: offer() + b"a=x\r\n" * 5000,
    "no codec in common": lambda: re.sub(rb"(VP8|H264|rtx)/90000", b"AV1/90000", offer()),
    "no ice": lambda: re.sub(rb"a=ice-(ufrag|pwd):.*\r\n", b"", offer()),
    "no fingerprint": lambda: re.sub(rb"a=fingerprint:.*\r\n", b"", offer()),
    "broken numbers": lambda: offer().replace(b"m=video 9", b"m=video x").replace(b"90000", b"-"),
    "broken candidate": lambda: offer() + b"a=candidate:nonsense\r\n",
    "broken lines": lambda: b"".join(line[:5] + b"\r\n" for line in offer().splitlines()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_offer_is_refused_in_one_line_and_leaves_no_session(
    studio: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.INFO):
        status, _, body = ask(studio.server, "POST", "/whep", HOSTILE[name](), SDP)
    if name == "no fingerprint" and status == 201:
        return  # DTLS refuses such a peer later
    assert status == 400
    assert body.count(b"\n") == 1
    assert studio.server._peers._peers == {}
    assert "ice-pwd" not in caplog.text
    assert "Traceback" not in caplog.text


def test_wrong_type_and_size(studio: Any) -> None:
    assert ask(studio.server, "POST", "/whep", offer(), {"Content-Type": "text/plain"})[0] == 415
    assert ask(studio.server, "POST", "/whep", offer())[0] == 415
    assert ask(studio.server, "POST", "/whep", offer() + b"a=x\r\n" * 20_000, SDP)[0] == 413
    assert ask(studio.server, "GET", "/whep")[0] == 405
    assert ask(studio.server, "GET", "/../server.py")[0] == 404


def test_foreign_origins_and_hosts_are_refused(studio: Any) -> None:
    own = studio.server.address.rstrip("/")
    port = urlsplit(own).port
    assert ask(studio.server, "GET", "/status", headers={"Host": "evil.example"})[0] == 403
    assert ask(studio.server, "GET", "/", headers={"Host": f"evil.example:{port}"})[0] == 403
    assert ask(studio.server, "GET", "/", headers={"Host": "["})[0] in (400, 403)
    assert ask(studio.server, "GET", "/status", headers={"Host": f"localhost:{port}"})[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", own.replace("http", "https")):
        assert ask(studio.server, "POST", "/whep", offer(), {**SDP, "Origin": origin})[0] == 403
        assert ask(studio.server, "DELETE", "/session/" + "0" * 32, headers={"Origin": origin})[0] == 403
    assert ask(studio.server, "GET", "/status", headers={"Origin": own})[0] == 200


def test_a_port_in_use_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = MediaServer(StreamSettings(port=port), DaemonInterface())
        with pytest.raises(UserError, match=rf"port {port} is used .* --port"):
            server.start()
        server.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", "127.0.0.1.example.org", ""])
def test_addresses_of_a_network_need_a_token_and_tls(host: str) -> None:
    with pytest.raises(UserError, match="token and TLS"):
        MediaServer(StreamSettings(host=host), DaemonInterface())


def test_an_odd_size_is_refused() -> None:
    with pytest.raises(UserError, match="even"):
        MediaServer(StreamSettings(size=511), DaemonInterface())


def test_start_and_stop_leave_no_thread_and_free_the_port() -> None:
    import threading

    before = set(threading.enumerate())
    first = MediaServer(StreamSettings(port=0), DaemonInterface())
    first.start()
    port = urlsplit(first.address).port
    first.stop()
    first.stop()
    second = MediaServer(StreamSettings(port=port or 0), DaemonInterface())
    second.start()
    assert ask(second, "GET", "/healthz")[0] == 200
    second.stop()
    assert set(threading.enumerate()) <= before


def test_the_client_of_the_documentation_receives_frames(
    studio: Any, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (root / "docs" / "protocols-http.md").read_text()
    program = text.split("```python\n")[1].split("```")[0].replace("asyncio.run(watch())", "")
    program = program.replace("range(100)", "range(10)")
    space: dict[str, Any] = {}
    exec(compile(program, "client", "exec"), space)
    asyncio.run(space["watch"](studio.server.address.rstrip("/")))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(line.endswith(" 512 512") for line in lines)
    studio.until(lambda: studio.server.viewers == 0)

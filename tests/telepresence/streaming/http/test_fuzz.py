"""Random requests are answered in one line or closed, and leave no sessions, threads or descriptors behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from insta_runtime.errors import UserError
from telepresence.streaming.rtc.offer import MAX_BYTES, MAX_CANDIDATES, MAX_LINES, MAX_SECTIONS, parse_offer

SDP = {"Content-Type": "application/sdp"}
SENT = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made_offer(direction: str) -> list[str]:
    """Lines of an SDP offer made by aiortc, with video, audio and data."""
    from aiortc import RTCConfiguration, RTCPeerConnection

    async def make() -> str:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        pc.addTransceiver("video", direction=direction)
        pc.addTransceiver("audio", direction=direction)
        pc.createDataChannel("page")
        await pc.setLocalDescription(await pc.createOffer())
        sdp = str(pc.localDescription.sdp)
        await pc.close()
        return sdp

    return asyncio.run(make()).splitlines()


@pytest.fixture(scope="module")
def lines() -> dict[str, list[str]]:
    return {direction: made_offer(direction) for direction in ("recvonly", "sendonly", "sendrecv")}


class Client:
    """HTTP connection to the daemon, opened again after it was closed."""

    def __init__(self, server: Any) -> None:
        url = urlsplit(server.address)
        self.host, self.port = url.hostname or "", url.port or 0
        self._http = http.client.HTTPConnection(self.host, self.port, timeout=600)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, Any, bytes]:
        try:
            self._http.request(method, path, body, headers or {})
            response = self._http.getresponse()
            return response.status, response.headers, response.read()
        except (http.client.RemoteDisconnected, ConnectionError):
            self._http.close()
            return 0, {}, b""


@pytest.fixture
def client(studio: Any, caplog: pytest.LogCaptureFixture) -> Iterator[Client]:
    """HTTP client; at the end, checks that the daemon works and that nothing is left behind."""
    client = Client(studio.server)
    client.ask("GET", "/healthz")
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    yield client
    assert client.ask("GET", "/healthz")[0] == 200
    studio.until(lambda: studio.server._peers._peers == {})
    studio.until(lambda: len(os.listdir("/proc/self/fd")) <= files + 2)
    assert all(thread.name.startswith("asyncio_") for thread in set(threading.enumerate()) - threads)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert "Traceback" not in caplog.text


edits = st.lists(
    st.tuples(
        st.sampled_from(["drop", "double", "swap", "cut", "splice", "number"]),
        st.integers(0, 10_000),
        st.integers(0, 10_000),
        st.sampled_from(
            ["", "x", "-1", "99999999999999999999", "m=video 9 UDP/TLS/RTP/SAVPF 96", "a=mid:0", "\x00", "ü"]
        ),
    ),
    min_size=1,
    max_size=5,
)


def edited(lines: list[str], changes: list[tuple[str, int, int, str]]) -> bytes:
    """``lines`` after ``changes``."""
    lines = list(lines)
    for what, one, two, text in changes:
        i, j = one % len(lines), two % len(lines)
        at = two % (len(lines[i]) + 1)
        match what:
            case "drop" if len(lines) > 1:
                del lines[i]
            case "double":
                lines.insert(i, lines[j])
            case "swap":
                lines[i], lines[j] = lines[j], lines[i]
            case "cut":
                lines[i] = lines[i][:at]
            case "splice":
                lines[i] = lines[i][:at] + text + lines[i][at:]
            case "number":
                lines[i] = "".join("9" if c.isdigit() and n % 3 == two % 3 else c for n, c in enumerate(lines[i]))
    return "\r\n".join([*lines, ""]).encode()


@SENT
@given(
    path=st.sampled_from(["whep", "whip", "call"]),
    direction=st.sampled_from(["recvonly", "sendonly", "sendrecv"]),
    changes=edits,
)
@example("whep", "recvonly", [("drop", 11, 0, "")])  # a section without a name: aiortc can neither answer nor close
def test_mutilated_offers(client: Client, lines: dict[str, list[str]], path: str, direction: str, changes: Any) -> None:
    status, headers, body = client.ask("POST", f"/{path}", edited(lines[direction], changes), SDP)
    assert status in (201, 400)
    if status == 201:
        assert client.ask("DELETE", headers["Location"])[0] == 200
        assert client.ask("DELETE", headers["Location"])[0] == 404
    else:
        assert body.count(b"\n") == 1


words = st.sampled_from(
    [
        "v=0",
        "m=video 9 X 96",
        "m=audio 9 X 1",
        "a=recvonly",
        "a=candidate:1 1 udp 1 x.local 9 typ host",
        "\r\n",
        "\n",
        "\u2028",
        "a=rtpmap:96 H264/90000",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(words | st.text(max_size=20), max_size=30).map(
        lambda parts: ("v=0\r\n" + "\r\n".join(parts)).encode("utf-8", "surrogatepass")
    )
)
def test_accepted_offers_are_small_and_contain_no_host_names(body: bytes) -> None:
    try:
        offer = parse_offer(body, "192.0.2.1")
    except UserError:
        return
    passed = offer.sdp.split("\r\n")
    assert len(offer.sdp) <= MAX_BYTES
    assert len(passed) <= MAX_LINES + 1
    assert sum(line.startswith("m=") for line in passed) <= MAX_SECTIONS
    assert sum(line.startswith("a=candidate:") for line in passed) <= MAX_CANDIDATES
    assert ".local" not in "".join(line for line in passed if line.startswith("a=candidate:") and line.count(" ") >= 5)
    assert all(line.isprintable() for line in passed)


FRAGMENTS = [
    *(
        b"GET / HTTP/1.1\r\n",
        b"POST /whep HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"\x16\x03\x01",
    ),
    *(
        b"Host: 127.0.0.1\r\n",
        b"Host:\r\n",
        b"Origin: \x00\r\n",
        b"Authorization: Bearer \xff\r\n",
        b'Cookie: ;=;"\\\r\n',
    ),
    *(b"Content-Length: -1\r\n", b"Content-Length: 99999999999\r\n", b"Content-Length: 3\r\n", b"abc", b"\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\n", b"0\r\n\r\n", b"Expect: 100-continue\r\n"),
    *(b"Content-Type: application/sdp\r\n", b"Upgrade: websocket\r\n", b"X: " + b"y" * 9000 + b"\r\n"),
]
requests = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=40), max_size=8)


@SENT
@given(parts=requests)
def test_random_bytes_are_survived(client: Client, parts: list[bytes]) -> None:
    with socket.create_connection((client.host, client.port), 20) as connection:
        try:
            connection.sendall(b"".join(parts))
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
        except ConnectionError:
            return
    assert answer == b"" or answer.startswith(b"HTTP/1.")
    assert b"Traceback" not in answer


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["background", "same", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@SENT
@given(value=values, path=st.sampled_from(["/background", "/person"]), raw=st.none() | st.binary(max_size=60))
def test_json_bodies_of_any_shape(client: Client, studio: Any, value: Any, path: str, raw: bytes | None) -> None:
    body = raw if raw is not None else json.dumps(value).encode()
    method = "PUT" if path == "/background" else "POST"
    assert client.ask(method, path, body, {"Content-Type": "application/json"})[0] in (204, 400, 409)
    assert client.ask(method, path, body, {"Content-Type": "text/plain"})[0] == 415


@SENT
@given(
    name=st.sampled_from(
        ["Host", "Origin", "Authorization", "Cookie", "Content-Type", "Content-Length", "X-Forwarded-For"]
    ),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=80),
    path=st.sampled_from(["/", "/status", "/whep", "/session/" + "0" * 32]),
    method=st.sampled_from(["GET", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH"]),
)
def test_headers_of_any_content(client: Client, name: str, value: str, path: str, method: str) -> None:
    body = b"" if name == "Content-Length" else b"v=0"
    status, _, answer = client.ask(method, path, body, {name: value})
    assert status in (0, 200, 204, 400, 401, 403, 404, 405, 408, 413, 415)
    assert b"Traceback" not in answer

"""The WHIP client: servers that refuse, disappear, come back, or send hostile answers."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest

from insta_runtime.errors import UserError
from telepresence.runtime.failure_policy import Condition, Health
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.streaming import DaemonInterface, MediaServer, StreamSettings
from telepresence.streaming.http.settings import AccessSettings
from telepresence.streaming.rtc.settings import PublishSettings
from telepresence.streaming.rtc.whip_client import PUBLISH

TOKEN = "-".join(["a", "token", "for", "tests"])


@contextmanager
def receiver(port: int = 0) -> Iterator[tuple[MediaServer, Mailbox[CameraFrame]]]:
    """Another daemon, which receives the published avatar as its camera."""
    camera: Mailbox[CameraFrame] = Mailbox("camera")
    settings = StreamSettings(port=port, access=AccessSettings(token=TOKEN))
    server = MediaServer(settings, DaemonInterface(camera))
    server.start()
    try:
        yield server, camera
    finally:
        server.stop()


@contextmanager
def publishing(studio: type[Any], url: str, token: str = TOKEN) -> Iterator[Any]:
    with studio(publish=PublishSettings(url, token)) as running:
        yield running


def health(studio: Any) -> Health:
    return studio.server.health(time.monotonic())["publish"]  # type: ignore[no-any-return]


def test_published_frames_arrive_and_continue_after_the_server_was_restarted(
    studio_type: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telepresence.streaming.rtc.whip_client.PUBLISH", replace(PUBLISH, pauses=(0.2,)))
    with receiver() as (first, camera):
        port = urlsplit(first.address).port or 0
        with publishing(studio_type, f"{first.address}whip") as studio:
            assert studio.until(lambda: camera.get(0.1)).rgb.shape == (512, 512, 3)
            studio.until(lambda: (frame := camera.get(0.1)) and studio.recent and studio.likeness(frame.rgb) > 25)
            studio.until(lambda: health(studio).condition is Condition.RUNNING)
            assert health(studio).error is None
            assert studio.server.watched
            assert studio.server.viewers == 0

            first.stop()
            studio.until(lambda: health(studio).condition is Condition.RESTARTING)
            with receiver(port) as (second, again):
                assert studio.until(lambda: again.get(0.1)).rgb.shape == (512, 512, 3)
                studio.until(lambda: health(studio).condition is Condition.RUNNING)
                assert health(studio).restarts >= 1
                sessions = second._peers._peers if second._peers is not None else {}
                assert len(sessions) == 1
                studio.server.stop()
                studio.until(lambda: not sessions)  # the client has ended its session


def test_a_wrong_publish_token_is_reported_and_never_logged(
    studio_type: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        receiver() as (server, _),
        publishing(studio_type, f"{server.address}whip", "not-the-right-one") as studio,
    ):
        studio.until(lambda: health(studio).error)
        assert health(studio).error == "it refuses the token; give the right one with --publish-token"
        assert health(studio).condition is Condition.RESTARTING
    assert "not-the-right-one" not in caplog.text
    assert TOKEN not in caplog.text


class FakeWhipServer(ThreadingHTTPServer):
    """HTTP server that gives the same answer to every request, and records method, path and authorization."""

    daemon_threads = True

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        requests = self.requests = []  # type: list[tuple[str, str, str | None]]
        self.body = lambda: body
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                requests.append((self.command, self.path, self.headers["Authorization"]))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                sent = owner.body()
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            do_DELETE = do_POST

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


SDP = {"Content-Type": "application/sdp", "Location": "/session"}
HOSTILE = {
    "not sdp": (201, SDP, b"hello", "not SDP"),
    "cut off": (201, SDP, b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 9 UDP", "cannot be used"),
    "not utf-8": (201, SDP, b"\xff\xfe", "not SDP"),
    "huge": (201, SDP, b"v=0\r\n" + b"a=x\r\n" * 20_000, "not SDP"),
    "html": (201, {"Content-Type": "text/html"}, b"<html>", "not SDP"),
    "ok, but not created": (200, SDP, b"v=0\r\n", "status 200"),
    "overloaded": (503, {"Retry-After": "7"}, b"", "overloaded"),
    "redirect loop": (307, {"Location": "/again"}, b"", "redirects more than 3 times"),
    "redirect to a file": (307, {"Location": "file:///etc/passwd"}, b"", "unencrypted"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_publishing_is_retried_after_malformed_answers(
    studio_type: type[Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, headers, body, words = HOSTILE[name]
    server = FakeWhipServer(status, headers, body)
    with publishing(studio_type, f"{server.url}/whip") as studio:
        studio.until(lambda: health(studio).error)
        assert words in (health(studio).error or "")
        assert "\n" not in (health(studio).error or "")
        if status == 201 and "Location" in headers:
            studio.until(lambda: ("POST", "/session", f"Bearer {TOKEN}") in server.requests or len(server.requests) > 1)
            assert server.requests[1][:2] == ("DELETE", "/session")
    server.shutdown()
    server.server_close()
    assert "Traceback" not in caplog.text


def test_the_token_is_not_sent_to_another_server(studio_type: type[Any]) -> None:
    other = FakeWhipServer(404, {}, b"")
    first = FakeWhipServer(307, {"Location": f"{other.url}/elsewhere"}, b"")
    with publishing(studio_type, f"{first.url}/whip") as studio:
        studio.until(lambda: health(studio).error)
    assert first.requests[0][2] == f"Bearer {TOKEN}"
    assert other.requests[0] == ("POST", "/elsewhere", None)
    for server in (first, other):
        server.shutdown()
        server.server_close()


ANSWER = """\
v=0
o=- 1 1 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=ice-ufrag:abcd
a=ice-pwd:0123456789abcdef01234567
a=fingerprint:sha-256 {fingerprint}
a=setup:passive
m=video 9 UDP/TLS/RTP/SAVPF 97
c=IN IP4 127.0.0.1
a=mid:0
a=recvonly
a=rtcp-mux
a=rtpmap:97 H264/90000
a=fmtp:97 packetization-mode=1;profile-level-id=42e01f;level-asymmetry-allowed=1
a=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host
m=audio 9 UDP/TLS/RTP/SAVPF 96
c=IN IP4 127.0.0.1
a=mid:1
a=recvonly
a=rtcp-mux
a=rtpmap:96 opus/48000/2
"""


def mutilated(lines: list[str], rng: random.Random) -> list[str]:
    lines = list(lines)
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(lines))
        match rng.randrange(3):
            case 0 if len(lines) > 1:
                del lines[i]
            case 1:
                lines[i] = lines[rng.randrange(len(lines))]
            case _:
                at = rng.randrange(len(lines[i]) + 1)
                lines[i] = lines[i][:at] + chr(rng.randrange(1, 300)) + lines[i][at + 1 :]
    return lines


def test_publishing_survives_mutilated_answers(
    studio_type: type[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last one is valid, but at its address nothing listens."""
    monkeypatch.setattr("telepresence.streaming.rtc.whip_client.PUBLISH", replace(PUBLISH, pauses=(0.01,)))
    monkeypatch.setattr("telepresence.streaming.rtc.whip_client.CONNECT_S", 0.2)
    rng = random.Random(0)
    good = ANSWER.format(fingerprint=":".join(["AB"] * 32)).splitlines()
    server = FakeWhipServer(201, SDP, b"")
    server.body = lambda: "\r\n".join([*mutilated(good, rng), ""]).encode()
    with publishing(studio_type, f"{server.url}/whip") as studio:
        studio.until(lambda: len(server.requests) > 100)
        assert health(studio).condition is Condition.RESTARTING
        assert not studio.server.watched
        server.body = lambda: "\r\n".join([*good, ""]).encode()
        studio.until(
            lambda: (health(studio).error or "").startswith(
                "it answers, but no media connection to it can be made (ICE: "
            )
        )
    server.shutdown()
    server.server_close()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("url", "token", "words"),
    [
        ("", "token", "--publish URL"),
        ("example.org/whip", "", "WHIP address"),
        ("ftp://example.org/whip", "", "WHIP address"),
        ("https://user:secret@example.org/whip", "", "WHIP address"),
        ("https://example.org:99999/whip", "", "WHIP address"),
        ("http://example.org/whip", "token", "unencrypted"),
    ],
)
def test_unusable_publish_addresses_are_refused(url: str, token: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        StreamSettings(publish=PublishSettings(url, token)).check()

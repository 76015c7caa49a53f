"""What a page sends over its data channels: read, believed only within bounds, and never too much of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telepresence.runtime.frames import CameraFrame
from telepresence.streaming.rtc.data_channels import (
    BODY,
    HEADER,
    MAX_REQUEST,
    MAX_MALFORMED,
    MAX_PITCH,
    POINTS,
    SCORES,
    MAX_YAW,
    FreezeRequest,
    OrbitRequest,
    PingRequest,
    RecalibrateRequest,
    WithholdRequest,
    parse_request,
    parse_landmarks,
)


def packet(number: int = 0, found: bool = True, width: int = 640, height: int = 480, age_ms: int = 12) -> bytes:
    """A face in the middle of a picture, as docs/protocols-page.md has it."""
    header = struct.pack("<BBHHHI", 1, found, width, height, age_ms, number)
    points = np.tile(np.array([0.5, 0.25, -0.125]), (478, 1)) + np.array([0.5, 0.5, 1.0])
    body = (points * 32768).astype("<u2").tobytes() + bytes(range(52))
    return header + body if found else header


def test_requests_are_read() -> None:
    assert parse_request('{"type": "ping", "t": 12.5}') == PingRequest(12.5)
    assert parse_request(b'{"type": "freeze", "on": true}') == FreezeRequest(True)
    assert parse_request('{"type": "recalibrate"}') == RecalibrateRequest()
    assert parse_request('{"type": "orbit", "yaw": -0.5, "pitch": 0.25}') == OrbitRequest(-0.5, 0.25)
    assert parse_request('{"type": "withhold"}') == WithholdRequest()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"type": "quit"}',
        '{"type": "freeze"}',
        '{"type": "freeze", "on": 1}',
        '{"type": "freeze", "on": true, "more": 1}',
        '{"type": "orbit", "yaw": 1e9, "pitch": 0}',
        f'{{"type": "orbit", "yaw": {MAX_YAW}, "pitch": {MAX_PITCH + 0.1}}}',
        '{"type": "orbit", "yaw": NaN, "pitch": 0}',
        '{"type": "ping", "t": 1e999}',
        '{"type": "ping", "t": -1}',
        '{"type": "recalibrate"' + " " * MAX_REQUEST + "}",
        "[" * MAX_REQUEST,
    ],
)
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_request(text)


def test_landmarks_are_read() -> None:
    found = parse_landmarks(packet(7, age_ms=30))
    assert (found.number, found.width, found.height, found.age_ms) == (7, 640, 480, 30)
    assert found.landmarks is not None
    assert found.landmarks.points.shape == (POINTS, 3)
    assert np.allclose(found.landmarks.points, [0.5, 0.25, -0.125], atol=1e-4)
    assert np.allclose(found.landmarks.scores, np.arange(SCORES) / 255)
    assert parse_landmarks(packet(8, found=False)).landmarks is None


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        b"",
        packet()[:-1],
        packet() + b"\0",
        packet(found=False) + b"\0",
        b"\2" + packet()[1:],
        packet()[:1] + b"\2" + packet()[2:],
        packet(width=15),
        packet(height=60000),
        packet(age_ms=501),
    ],
)
def test_what_is_no_packet_of_landmarks_is_refused(wrong: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_landmarks(wrong)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=600), st.text(max_size=600)))
def test_nothing_else_than_a_refusal_comes_of_anything(message: str | bytes) -> None:
    for read in (parse_request, parse_landmarks):
        with contextlib.suppress(ValueError):
            read(message)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=HEADER.size - 2, max_size=HEADER.size - 2), st.integers(0, 255))
def test_every_packet_that_is_read_is_within_bounds(header: bytes, filling: int) -> None:
    for found in (0, 1):
        try:
            seen = parse_landmarks(bytes([1, found]) + header + bytes([filling]) * (BODY if found else 0))
        except ValueError:
            continue
        if seen.landmarks is not None:
            assert -1.0 <= seen.landmarks.points.min() <= seen.landmarks.points.max() < 1.5
            assert 0.0 <= seen.landmarks.scores.min() <= seen.landmarks.scores.max() <= 1.0


async def ask(channel: Any, answers: asyncio.Queue[str], message: dict[str, Any]) -> dict[str, Any]:
    channel.send(json.dumps(message))
    answer: dict[str, Any] = json.loads(await asyncio.wait_for(answers.get(), 10))
    return answer


@pytest.mark.timeout(60)
def test_a_peer_asks_and_is_answered_and_a_wild_one_is_cut_off(studio: Any, call_daemon: Any) -> None:
    async def scenario() -> None:
        answers: asyncio.Queue[str] = asyncio.Queue()
        async with call_daemon(studio.server.address, labels=("control", "landmarks", "other")) as channels:
            control, landmarks, other = channels
            control.on("message", answers.put_nowait)
            assert await ask(control, answers, {"type": "ping", "t": 5.5}) == {"type": "pong", "t": 5.5}
            done = {"type": "done", "of": "freeze"}
            assert await ask(control, answers, {"type": "freeze", "on": True}) == done
            assert studio.commands == [("freeze", True)]
            studio.refusal = "nobody is known yet"
            refused = {"type": "refused", "of": "recalibrate", "text": "nobody is known yet"}
            assert await ask(control, answers, {"type": "recalibrate"}) == refused

            for _ in range(200):  # a channel of a kind that nobody knows
                if other.readyState == "closed":
                    break
                await asyncio.sleep(0.05)
            assert other.readyState == "closed"

            landmarks.send(packet(1))  # of a page that gives no camera
            for _ in range(MAX_MALFORMED - 1):
                landmarks.send(b"nonsense")
            for _ in range(200):
                if landmarks.readyState == "closed":
                    break
                await asyncio.sleep(0.05)
            assert landmarks.readyState == "closed"
            assert studio.camera.get(0.1) is None
            pong = {"type": "pong", "t": 1.0}
            assert await ask(control, answers, {"type": "ping", "t": 1}) == pong, "the other channel works on"

    asyncio.run(scenario())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", ["many channels", "a message without an end"])
def test_a_peer_that_fills_the_memory_is_cut_off(studio: Any, call_daemon: Any, way: str) -> None:
    async def deaf(_param: Any) -> None:
        """Hears of no channel that is closed."""

    async def scenario() -> None:
        async with call_daemon(studio.server.address, labels=("control",)) as channels:
            pc = call_daemon.last
            if way == "many channels":
                vars(pc.sctp)["_receive_reconfig_param"] = deaf  # and does not let go of any
                for number in range(20):
                    pc.createDataChannel(f"channel {number}")
            else:
                pc.sctp._remote_max_message_size = 0  # it does not care what the daemon takes
                fragments = pc.sctp._outbound_queue
                channels[0].send(b"x" * 4_000_000)
                while not fragments:  # until it is cut into fragments
                    await asyncio.sleep(0.01)
                for fragment in fragments:
                    fragment.flags &= ~1  # SCTP_DATA_LAST_FRAG
            for _ in range(400):
                if channels[0].readyState == "closed":
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("it is still there")

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_landmarks_of_a_camera_arrive_newest_first(studio: Any, call_daemon: Any) -> None:
    async def scenario() -> list[CameraFrame]:
        frames = []
        async with call_daemon(studio.server.address, labels=("landmarks",), camera=True) as (channel,):
            for number in (5, 6, 4, 6, 9):  # as a network may deliver them
                channel.send(packet(number, found=number != 9, width=320, height=240))
                if (frame := await asyncio.to_thread(studio.camera.get, 1.0)) is not None:
                    frames.append(frame)
        return frames

    frames = asyncio.run(scenario())
    assert [frame.landmarks is not None for frame in frames] == [True, True, False], "what came too late was dropped"
    assert all(frame.landmarks_only and frame.rgb.shape == (240, 320, 3) and not frame.rgb.any() for frame in frames)
    assert studio.camera_events[0] is True, "a camera was lent, though no picture came"
    assert all(b.t_capture_ns > a.t_capture_ns for a, b in itertools.pairwise(frames))

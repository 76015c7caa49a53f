"""Data channels of the page: requests, landmark packets, their validation and limits."""

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
from telepresence.streaming.rtc.camera_receiver import CameraReceiver
from telepresence.streaming.rtc.data_channels import (
    BODY,
    HEADER,
    MAX_MALFORMED,
    MAX_PITCH,
    MAX_REQUEST,
    MAX_YAW,
    POINTS,
    SCORES,
    FreezeRequest,
    LandmarkPacket,
    OrbitRequest,
    PingRequest,
    RecalibrateRequest,
    WithholdRequest,
    parse_landmarks,
    parse_request,
)


def packet(number: int = 0, found: bool = True, width: int = 640, height: int = 480, age_ms: int = 12) -> bytes:
    """Landmark packet of a face in the middle of the frame (docs/protocols-page.md)."""
    header = struct.pack("<BBHHHI", 1, found, width, height, age_ms, number)
    points = np.tile(np.array([0.5, 0.25, -0.125]), (478, 1)) + np.array([0.5, 0.5, 1.0])
    body = (points * 32768).astype("<u2").tobytes() + bytes(range(52))
    return header + body if found else header


def test_requests_are_parsed() -> None:
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
def test_malformed_requests_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_request(text)


def test_landmark_packets_are_parsed() -> None:
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
def test_malformed_landmark_packets_are_refused(wrong: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_landmarks(wrong)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=600), st.text(max_size=600)))
def test_parsers_raise_only_value_errors(message: str | bytes) -> None:
    for read in (parse_request, parse_landmarks):
        with contextlib.suppress(ValueError):
            read(message)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=HEADER.size - 2, max_size=HEADER.size - 2), st.integers(0, 255))
def test_every_parsed_landmark_packet_is_within_bounds(header: bytes, filling: int) -> None:
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


def test_requests_are_answered_and_malformed_messages_close_the_channel(studio: Any, call_daemon: Any) -> None:
    async def scenario() -> None:
        answers: asyncio.Queue[str] = asyncio.Queue()
        async with call_daemon(studio.server.address, labels=("control", "landmarks", "other")) as channels:
            control, landmarks, other = channels
            control.on("message", answers.put_nowait)
            assert await ask(control, answers, {"type": "ping", "t": 5.5}) == {"type": "pong", "t": 5.5}
            done = {"type": "done", "of": "freeze"}
            assert await ask(control, answers, {"type": "freeze", "on": True}) == done
            assert studio.commands == [("freeze", True)]
            studio.refusal = "no subject is known yet"
            refused = {"type": "refused", "of": "recalibrate", "text": "no subject is known yet"}
            assert await ask(control, answers, {"type": "recalibrate"}) == refused

            for _ in range(200):  # a channel with an unknown label
                if other.readyState == "closed":
                    break
                await asyncio.sleep(0.05)
            assert other.readyState == "closed"

            landmarks.send(packet(1))  # from a peer that sends no camera
            for _ in range(MAX_MALFORMED - 1):
                landmarks.send(b"nonsense")
            for _ in range(6000):
                if landmarks.readyState == "closed":
                    break
                await asyncio.sleep(0.05)
            assert landmarks.readyState == "closed"
            assert studio.camera.get(0.1) is None
            pong = {"type": "pong", "t": 1.0}
            assert await ask(control, answers, {"type": "ping", "t": 1}) == pong, "the other channel still works"

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["many channels", "an incomplete message"])
def test_a_peer_that_uses_too_much_memory_loses_its_session(studio: Any, call_daemon: Any, way: str) -> None:
    async def deaf(_param: Any) -> None:
        """Ignores requests to close a channel."""

    async def scenario() -> None:
        async with call_daemon(studio.server.address, labels=("control",)) as channels:
            pc = call_daemon.last
            if way == "many channels":
                vars(pc.sctp)["_receive_reconfig_param"] = deaf  # the peer closes no channel
                for number in range(20):
                    pc.createDataChannel(f"channel {number}")
            else:
                pc.sctp._remote_max_message_size = 0  # the peer ignores the maximum message size of the daemon
                fragments = pc.sctp._outbound_queue
                channels[0].send(b"x" * 4_000_000)
                while not fragments:  # until it is split into fragments
                    await asyncio.sleep(0.01)
                for fragment in fragments:
                    fragment.flags &= ~1  # SCTP_DATA_LAST_FRAG
            for _ in range(400):
                if channels[0].readyState == "closed":
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("the session was not closed")

    asyncio.run(scenario())


def test_landmarks_that_arrive_out_of_order_are_dropped(
    studio: Any, call_daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[int] = []
    push = CameraReceiver.push_landmarks

    def record(camera: CameraReceiver, received: LandmarkPacket) -> None:
        pushed.append(received.number)
        push(camera, received)

    monkeypatch.setattr(CameraReceiver, "push_landmarks", record)

    async def scenario() -> list[CameraFrame]:
        frames = []
        async with call_daemon(studio.server.address, labels=("landmarks",), camera=True) as (channel,):
            for number in (5, 6, 4, 6, 9):  # order in which the network delivers them
                channel.send(packet(number, found=number != 9, width=320, height=240))
                if number not in pushed and number != 4:
                    frames.append(await asyncio.to_thread(studio.camera.get, 20.0))
        return frames

    frames = asyncio.run(scenario())
    assert pushed == [5, 6, 9], "late and repeated packets are dropped"
    assert [frame.landmarks is not None for frame in frames] == [True, True, False]
    assert all(frame.landmarks_only and frame.rgb.shape == (240, 320, 3) and not frame.rgb.any() for frame in frames)
    assert studio.camera_events[0] is True, "a camera is active although it has sent no frame"
    assert all(b.t_capture_ns > a.t_capture_ns for a, b in itertools.pairwise(frames))

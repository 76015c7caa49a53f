"""Packets through real UDP sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from insta_runtime.errors import UserError
from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadModel, load_head
from telepresence.drivers.transfer import Habits, LiveTransfer
from telepresence.drivers.udp import BRIDGES, Bridge, check_endpoint, parse_endpoint
from tests.support import face_packets as packets

AHEAD = np.diag([1.0, -1.0, -1.0])
TALKS = {
    "livelink": lambda frame: packets.livelink({"JawOpen": 0.5}, frame=frame),
    "vmc": lambda frame: packets.vmc({"jawOpen": 0.5}, time=frame / 60),
    "openseeface": lambda frame: packets.openseeface(AHEAD, at=1.7e9 + frame / 60, features={"mouth_open": 0.5}),
}


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        yield sending


@pytest.fixture
def bridges(head: HeadModel) -> Iterator[Callable[..., Bridge]]:
    opened: list[Bridge] = []

    def make(name: str, **options: object) -> Bridge:
        bridge = Bridge(name, "127.0.0.1:0", head, **({"refused": lambda _text: None} | options))  # type: ignore[arg-type]
        bridge.start()
        opened.append(bridge)
        return bridge

    yield make
    for bridge in opened:
        bridge.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("name", BRIDGES)
def test_packets_move_the_face_nonsense_does_not_and_old_ones_are_late(
    name: str, bridges: Callable[..., Bridge], sender: socket.socket, head: HeadModel
) -> None:
    refusals: list[str] = []
    bridge = bridges(name, refused=refusals.append)
    there = ("127.0.0.1", bridge.port)
    sender.sendto(TALKS[name](1000), there)
    sender.sendto(b"nonsense that is no packet", there)
    sender.sendto(TALKS[name](940), there)
    sender.sendto(TALKS[name](1001), there)
    until(lambda: bridge.counts.total() == 4)
    assert bridge.counts == {"taken": 2, "malformed": 1, "late": 1}
    assert len(refusals) == 1
    newest = bridge.newest()
    assert newest is not None
    assert newest.state.expression[head.expression_names.index("jawOpen")] == pytest.approx(0.5)
    assert newest.state.t_capture_ns == newest.arrived_ns
    report = bridge.report(newest.arrived_ns)
    assert report["address"] == f"udp://127.0.0.1:{bridge.port}"
    assert report["age_s"] == 0.0


def test_a_stranger_on_a_phone_becomes_the_avatars_neutral(
    bridges: Callable[..., Bridge], sender: socket.socket, head: HeadModel
) -> None:
    """Whatever the phone takes for a relaxed face, looking wherever: it is the avatar's own, where that was learned."""
    place = np.array([0.0, 0.0, 0.55], np.float32)
    target = Habits.unknown(head, place)
    bridge = bridges("livelink", transfer=LiveTransfer(head, lambda: ("0" * 16, target)))
    there = ("127.0.0.1", bridge.port)
    relaxed = {"JawOpen": 0.08, "MouthSmileLeft": 0.2, "HeadYaw": 0.3, "HeadPitch": -0.1, "EyeLookUpLeft": 0.2}
    sender.sendto(packets.livelink(relaxed, frame=1), there)
    until(lambda: bridge.counts["taken"] == 1)
    first = bridge.newest()
    assert first is not None
    assert first.transferred
    np.testing.assert_allclose(first.state.expression, 0.0, atol=1e-6)
    np.testing.assert_allclose(rotation_matrix(first.state.rotation), AHEAD, atol=1e-5)
    np.testing.assert_allclose(first.state.eye_pose, 0.0, atol=1e-6)
    np.testing.assert_allclose(first.state.translation, place, atol=1e-6)
    sender.sendto(packets.livelink(relaxed | {"JawOpen": 0.58, "HeadYaw": 0.5}, frame=2), there)
    until(lambda: bridge.counts["taken"] == 2)
    second = bridge.newest()
    assert second is not None
    assert second.state.expression[head.expression_names.index("jawOpen")] == pytest.approx(0.5, abs=0.02)
    assert 0.05 < rotation_matrix(second.state.rotation)[0, 2] < 0.25  # to the left, by some of 0.2


def test_a_phone_without_a_face_is_counted_and_moves_nothing(
    bridges: Callable[..., Bridge], sender: socket.socket
) -> None:
    bridge = bridges("livelink")
    sender.sendto(packets.livelink(face=False), ("127.0.0.1", bridge.port))
    until(lambda: bridge.counts["empty"] == 1)
    assert bridge.newest() is None


def test_only_the_machine_that_may_is_heard(bridges: Callable[..., Bridge]) -> None:
    bridge = bridges("livelink", only_from="127.0.0.2")
    for place in ("127.0.0.1", "127.0.0.2"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.bind((place, 0))
            sending.sendto(packets.livelink(), ("127.0.0.1", bridge.port))
    until(lambda: bridge.counts.total() == 2)
    assert bridge.counts == {"foreign": 1, "taken": 1}


def test_a_port_that_is_taken_is_one_line(bridges: Callable[..., Bridge], head: HeadModel) -> None:
    bridge = bridges("vmc")
    second = Bridge("vmc", str(bridge.port), head, refused=pytest.fail)
    with pytest.raises(UserError, match=r"drivers\.vmc"):
        second.start()
    second.stop()


@pytest.mark.parametrize(
    ("where", "endpoint"),
    [
        ("on", ("127.0.0.1", 39539)),
        ("4000", ("127.0.0.1", 4000)),
        ("0.0.0.0", ("0.0.0.0", 39539)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:5", ("::1", 5)),
    ],
)
def test_endpoints(where: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(where, 39539) == endpoint


@pytest.mark.parametrize("where", ["", "off", "example.org:1", "1.2.3:4", "127.0.0.1:99999", "127.0.0.1:", "[::1"])
def test_what_is_no_endpoint_is_named(where: str) -> None:
    with pytest.raises(UserError):
        parse_endpoint(where, 39539)


def test_beyond_this_machine_only_with_the_name_of_who_may() -> None:
    with pytest.raises(UserError, match=r"drivers\.only_from"):
        check_endpoint("livelink", "0.0.0.0", "")
    check_endpoint("livelink", "0.0.0.0:11111", "192.168.1.20")
    check_endpoint("livelink", "", "")
    with pytest.raises(UserError, match="address of a machine"):
        check_endpoint("livelink", "on", "my-phone")

"""UDP bridges with packets through real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest

from insta_runtime.errors import UserError
from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadModel, load_head
from telepresence.drivers.expression_transfer import ExpressionStats, LiveTransfer
from telepresence.drivers.udp_bridge import BRIDGES, UdpBridge, check_endpoint, parse_endpoint
from tests.support import face_packets as packets

AHEAD = np.diag([1.0, -1.0, -1.0])
PACKETS = {
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
def bridges(head: HeadModel) -> Iterator[Callable[..., UdpBridge]]:
    opened: list[UdpBridge] = []

    def make(name: str, **options: object) -> UdpBridge:
        bridge = UdpBridge(name, "127.0.0.1:0", head, **({"on_refused": lambda _text: None} | options))  # type: ignore[arg-type]
        bridge.start()
        opened.append(bridge)
        return bridge

    yield make
    for bridge in opened:
        bridge.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("name", BRIDGES)
def test_packets_move_the_face_and_malformed_or_late_ones_do_not(
    name: str, bridges: Callable[..., UdpBridge], sender: socket.socket, head: HeadModel
) -> None:
    refusals: list[str] = []
    bridge = bridges(name, on_refused=refusals.append)
    there = ("127.0.0.1", bridge.port)
    sender.sendto(PACKETS[name](1000), there)
    sender.sendto(b"not a packet", there)
    sender.sendto(PACKETS[name](940), there)
    sender.sendto(PACKETS[name](1001), there)
    until(lambda: bridge.counts.total() == 4)
    assert bridge.counts == {"accepted": 2, "malformed": 1, "late": 1}
    assert len(refusals) == 1
    newest = bridge.newest()
    assert newest is not None
    assert newest.state.expression[head.expression_names.index("jawOpen")] == pytest.approx(0.5)
    assert newest.state.t_capture_ns == newest.arrived_ns
    report = bridge.report(newest.arrived_ns)
    assert report["address"] == f"udp://127.0.0.1:{bridge.port}"
    assert report["age_s"] == 0.0


def test_the_neutral_face_of_a_phone_is_mapped_to_the_avatars(
    bridges: Callable[..., UdpBridge], sender: socket.socket, head: HeadModel
) -> None:
    """The first face that a phone sends is mapped to the avatar's neutral face, in the pose in which it was learned."""
    place = np.array([0.0, 0.0, 0.55], np.float32)
    target = ExpressionStats.unknown(head, place)
    live, times = LiveTransfer(head, lambda: ("0" * 16, target)), count(0, 40_000_000)
    bridge = bridges("livelink", transfer=lambda state, person: live(state, person, next(times)))
    there = ("127.0.0.1", bridge.port)
    relaxed = {"JawOpen": 0.08, "MouthSmileLeft": 0.2, "HeadYaw": 0.3, "HeadPitch": -0.1, "EyeLookUpLeft": 0.2}
    sender.sendto(packets.livelink(relaxed, frame=1), there)
    until(lambda: bridge.counts["accepted"] == 1)
    first = bridge.newest()
    assert first is not None
    assert first.transferred
    np.testing.assert_allclose(first.state.expression, 0.0, atol=1e-6)
    np.testing.assert_allclose(rotation_matrix(first.state.rotation), AHEAD, atol=1e-5)
    np.testing.assert_allclose(first.state.eye_pose, 0.0, atol=1e-6)
    np.testing.assert_allclose(first.state.translation, place, atol=1e-6)
    sender.sendto(packets.livelink(relaxed | {"JawOpen": 0.58, "HeadYaw": 0.5}, frame=2), there)
    until(lambda: bridge.counts["accepted"] == 2)
    second = bridge.newest()
    assert second is not None
    assert second.state.expression[head.expression_names.index("jawOpen")] == pytest.approx(0.5, abs=0.02)
    assert 0.05 < rotation_matrix(second.state.rotation)[0, 2] < 0.25  # to the left, by at most 0.2


def test_a_phone_without_a_face_is_counted_and_moves_nothing(
    bridges: Callable[..., UdpBridge], sender: socket.socket
) -> None:
    bridge = bridges("livelink")
    sender.sendto(packets.livelink(face=False), ("127.0.0.1", bridge.port))
    until(lambda: bridge.counts["empty"] == 1)
    assert bridge.newest() is None


def test_only_packets_of_the_allowed_machine_are_accepted(bridges: Callable[..., UdpBridge]) -> None:
    bridge = bridges("livelink", only_from="127.0.0.2")
    for place in ("127.0.0.1", "127.0.0.2"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.bind((place, 0))
            sending.sendto(packets.livelink(), ("127.0.0.1", bridge.port))
    until(lambda: bridge.counts.total() == 2)
    assert bridge.counts == {"foreign": 1, "accepted": 1}


def test_a_port_in_use_gives_a_one_line_error(bridges: Callable[..., UdpBridge], head: HeadModel) -> None:
    bridge = bridges("vmc")
    second = UdpBridge("vmc", str(bridge.port), head, on_refused=pytest.fail)
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


@pytest.mark.parametrize(
    "where", ["", "off", "no-such-name.invalid:1", "1.2.3:4", "127.0.0.1:99999", "127.0.0.1:", "[::1"]
)
def test_an_invalid_endpoint_is_refused(where: str) -> None:
    with pytest.raises(UserError):
        parse_endpoint(where, 39539)


def test_other_machines_are_accepted_only_if_one_is_named() -> None:
    with pytest.raises(UserError, match=r"drivers\.only_from"):
        check_endpoint("livelink", "0.0.0.0", "")
    check_endpoint("livelink", "0.0.0.0:11111", "192.168.1.20")
    check_endpoint("livelink", "", "")
    with pytest.raises(UserError, match="not an IP address"):
        check_endpoint("livelink", "on", "my-phone")


@pytest.mark.parametrize(
    ("where", "senders", "address"),
    [
        ("127.0.0.1:0", ["127.0.0.1"], "udp://127.0.0.1:"),
        ("localhost:0", ["127.0.0.1"], "udp://127.0.0.1:"),
        ("[::1]:0", ["::1"], "udp://[::1]:"),
        ("[::ffff:127.0.0.1]:0", ["127.0.0.1"], "udp://127.0.0.1:"),
    ],
)
def test_packets_arrive_over_ipv4_ipv6_and_by_name(
    head: HeadModel, where: str, senders: list[str], address: str
) -> None:
    bridge = UdpBridge("livelink", where, head, on_refused=pytest.fail)
    bridge.start()
    assert bridge.address == f"{address}{bridge.port}"
    for count_, sender in enumerate(senders, start=1):
        send_from(sender, bridge.port)
        until(lambda count_=count_: bridge.counts["accepted"] == count_)  # type: ignore[misc]
    bridge.stop()


@pytest.mark.parametrize(
    ("only_from", "counts"),
    [
        ("127.0.0.1", {"accepted": 1, "foreign": 1}),
        ("::ffff:127.0.0.1", {"accepted": 1, "foreign": 1}),
        ("::1", {"foreign": 1, "accepted": 1}),
        ("0:0::1", {"foreign": 1, "accepted": 1}),
        ("192.0.2.1", {"foreign": 2}),
    ],
)
def test_all_addresses_are_those_of_ipv4_and_ipv6_and_one_sender_is_allowed(
    head: HeadModel, only_from: str, counts: dict[str, int]
) -> None:
    bridge = UdpBridge("livelink", "[::]:0", head, on_refused=pytest.fail, only_from=only_from)
    bridge.start()
    assert bridge.address == f"udp://[::]:{bridge.port}"
    for there in ("127.0.0.1", "::1"):
        send_from(there, bridge.port)
    until(lambda: bridge.counts.total() == 2)
    assert bridge.counts == counts
    bridge.stop()


def send_from(there: str, port: int) -> None:
    """Send a packet of Live Link Face to ``port`` at the loopback address ``there``."""
    family = socket.AF_INET6 if ":" in there else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sending:
        sending.sendto(packets.livelink(), (there, port))


@pytest.mark.parametrize(
    "where", ["[::]:1", "::", "[::ffff:0.0.0.0]:1", "[2001:db8::1]:1", "[fe80::1%lo]:1", "192.0.2.1"]
)
def test_what_other_machines_reach_needs_the_name_of_one(where: str) -> None:
    with pytest.raises(UserError, match=r"drivers\.only_from"):
        check_endpoint("vmc", where, "")
    check_endpoint("vmc", where, "192.168.1.20")


@pytest.mark.parametrize(
    "where", ["[::g]:1", "[1:2]:1", "::1:x", "[::1]:70000", "[127.0.0.1", "no-such-name.invalid", "off"]
)
def test_what_is_no_endpoint_is_refused_in_one_line(where: str) -> None:
    with pytest.raises(UserError) as refused:
        check_endpoint("vmc", where, "")
    assert "\n" not in str(refused.value)

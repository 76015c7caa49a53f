"""Parameter messages through real sockets, valid and malicious ones."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from insta_runtime.errors import UserError
from insta_runtime.head import load_head
from insta_runtime.types import HeadState
from telepresence.client import ParameterClient
from telepresence.drivers import parameter_message
from telepresence.drivers.receiver import FLOOR_NS
from telepresence.drivers.zeromq import ZeroMqDriver
from telepresence.drivers.zeromq_address import check_address

HEAD = "0123456789abcdef" * 4
GOOD: dict[str, Any] = {"v": 1, "seq": 0, "t_capture_ns": 1, "head": HEAD, "basis": "arkit52"}


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def refusals() -> list[str]:
    return []


@pytest.fixture
def driver(refusals: list[str]) -> Iterator[ZeroMqDriver]:
    driver = ZeroMqDriver(
        "tcp://127.0.0.1:*", basis="arkit52", head_sha256=HEAD, expressions=52, on_refused=refusals.append
    )
    driver.start()
    yield driver
    driver.stop()


def raw_push(driver: ZeroMqDriver) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(driver.address)
    return socket


def test_a_state_arrives_and_absent_fields_keep_their_value(driver: ZeroMqDriver, refusals: list[str]) -> None:
    rng = np.random.default_rng(0)
    state = HeadState(
        expression=rng.random(52, dtype=np.float32),
        jaw_pose=np.array([0.1, 0.0, 0.0], np.float32),
        eye_pose=rng.normal(0, 0.1, (2, 3)).astype(np.float32),
        eyelids=np.array([0.2, 0.3], np.float32),
        translation=np.array([0.01, -0.02, 0.5], np.float32),
    )
    with ParameterClient(driver.address, HEAD, "arkit52") as client:
        assert client.wait(120)
        sent = time.monotonic_ns()
        assert client.send(state, t_capture_ns=sent)
        eventually(lambda: driver.received == 1)
        newest = driver.newest()
        assert newest is not None
        assert newest.state.t_capture_ns == sent
        for name, values in state.arrays().items():
            np.testing.assert_array_equal(newest.state.arrays()[name], values)

        assert client.send(eyelids=[1.5, -2.0], rotation=[0.0, 0.1, 0.2])
        eventually(lambda: driver.received == 2)
        newest = driver.newest()
        assert newest is not None
        np.testing.assert_array_equal(newest.state.eyelids, [1.0, 0.0])
        np.testing.assert_allclose(newest.state.rotation, [0.0, 0.1, 0.2], rtol=1e-6)
        np.testing.assert_array_equal(newest.state.expression, state.expression)
        np.testing.assert_array_equal(newest.state.translation, state.translation)
        assert driver.age(newest.arrived_ns + 250_000_000) == 0.25
    assert refusals == []


def test_malformed_messages_are_dropped_and_counted(driver: ZeroMqDriver, refusals: list[str]) -> None:
    pack = msgspec.msgpack.encode
    hostile = {
        b"": "malformed",
        b"\xc1\xff not msgpack": "malformed",
        b"\x93\x01\x02\x03": "malformed",
        b"\xdf\xff\xff\xff\xff": "malformed",
        b"\x91" * 10_000: "malformed",
        b"x" * (parameter_message.MAX_BYTES + 1): "bytes",
        pack(GOOD | {"v": 3}): "version 3",
        pack({key: value for key, value in GOOD.items() if key != "head"}): "head",
        pack(GOOD | {"head": "ff" * 32}): "head",
        pack(GOOD | {"head": "../../etc/passwd"}): "head",
        pack(GOOD | {"basis": "flame"}): "flame",
        pack(GOOD | {"basis": "other"}): "basis",
        pack(GOOD | {"seq": -1}): "seq",
        pack(GOOD | {"surprise": 1}): "surprise",
        pack(GOOD | {"expression": [0.0] * 51}): "51 weights",
        pack(GOOD | {"expression": [0.0] * 1000}): "expression",
        pack(GOOD | {"expression": [math.nan] * 52}): "finite",
        pack(GOOD | {"expression": "x" * 52}): "expression",
        pack(GOOD | {"jaw_pose": [0.0, 1e300, 0.0]}): "finite",
        pack(GOOD | {"rotation": [100.0, 0.0, 0.0]}): "rotation",
        pack(GOOD | {"translation": [0.0, 0.0, -1.0]}): "translation",
        pack(GOOD | {"eye_pose": [0.0] * 6}): "eye_pose",
    }
    socket = raw_push(driver)
    for payload in hostile:
        socket.send(payload)
    socket.send_multipart([b"two", b"frames"])
    socket.send(pack(GOOD | {"eyelids": [0.5, 0.5]}))
    eventually(lambda: driver.received == 1)
    socket.close()
    assert driver.counts["malformed"] == len(hostile) + 1 == len(refusals)
    for text, needle in zip(refusals, [*hostile.values(), "frames"], strict=True):
        assert needle in text
        assert "\n" not in text
    newest = driver.newest()
    assert newest is not None
    np.testing.assert_array_equal(newest.state.eyelids, [0.5, 0.5])


def test_a_frame_beyond_the_size_limit_disconnects_only_its_sender(driver: ZeroMqDriver) -> None:
    flood, honest = raw_push(driver), raw_push(driver)
    flood.setsockopt(zmq.LINGER, 0)
    flood.send(b"x" * (2 << 20))
    honest.send(msgspec.msgpack.encode(GOOD))
    eventually(lambda: driver.received == 1)
    flood.close()
    honest.close()


def test_fields_that_are_reset_or_absent_are_those_of_the_base_state(driver: ZeroMqDriver) -> None:
    tracked = HeadState.neutral(52)
    tracked.translation[2] = 0.9
    driver.set_base(tracked)
    with ParameterClient(driver.address, HEAD, "arkit52") as client:
        assert client.wait(120)
        client.send(eyelids=[0.5, 0.5], jaw_pose=[0.1, 0.0, 0.0])
        eventually(lambda: driver.received == 1)
        client.send(jaw_pose=None)
        eventually(lambda: driver.received == 2)
    newest = driver.newest()
    assert newest is not None
    np.testing.assert_array_equal(newest.state.eyelids, [0.5, 0.5])
    np.testing.assert_array_equal(newest.state.jaw_pose, [0.0, 0.0, 0.0])
    assert newest.state.translation[2] == np.float32(0.9)


def test_version_1_is_accepted_and_none_is_an_absent_field(driver: ZeroMqDriver, refusals: list[str]) -> None:
    socket = raw_push(driver)
    for seq, body in enumerate(({"eyelids": [0.5, 0.5]}, {"eyelids": None})):
        socket.send(msgspec.msgpack.encode(GOOD | {"seq": seq, "t_capture_ns": seq} | body))
    eventually(lambda: driver.received == 2)
    socket.close()
    newest = driver.newest()
    assert newest is not None
    np.testing.assert_array_equal(newest.state.eyelids, [0.5, 0.5])
    assert refusals == []


def test_late_and_stale_messages_are_dropped_and_counted(
    driver: ZeroMqDriver, refusals: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = 1_000_000_000
    now = time.monotonic_ns()
    monkeypatch.setattr("telepresence.drivers.zeromq.now_ns", lambda: now)
    socket = raw_push(driver)

    def send(seq: int, age_ns: int, lid: float) -> None:
        body = {"v": 2, "seq": seq, "t_capture_ns": now - age_ns, "eyelids": [lid, lid]}
        socket.send(msgspec.msgpack.encode(GOOD | body))

    send(10, 0, 0.1)
    send(12, 0, 0.3)
    send(11, second // 10, 0.2)  # overtaken
    send(12, second // 10, 0.9)  # a copy
    send(13, 2 * second, 0.4)  # in order, but delayed by two seconds
    send(14, 0, 0.5)
    eventually(lambda: driver.received == 3)
    socket.close()
    newest = driver.newest()
    assert newest is not None
    np.testing.assert_allclose(newest.state.eyelids, 0.5)
    assert driver.counts == {"accepted": 3, "late": 2, "stale": 1}
    assert refusals == []


def test_the_current_sender_excludes_others_until_it_is_silent(
    driver: ZeroMqDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [time.monotonic_ns()]
    monkeypatch.setattr("telepresence.drivers.zeromq.now_ns", lambda: clock[0])
    with (
        ParameterClient(driver.address, HEAD, "arkit52") as first,
        ParameterClient(driver.address, HEAD, "arkit52") as other,
    ):
        assert first.wait(120)
        assert other.wait(120)
        first.send(eyelids=[0.1, 0.1])
        eventually(lambda: driver.received == 1)
        other.send(jaw_pose=[0.3, 0.0, 0.0])
        eventually(lambda: driver.counts["busy"] == 1)
        newest = driver.newest()
        assert newest is not None
        assert newest.state.jaw_pose[0] == 0.0

        clock[0] += FLOOR_NS  # the first one has been silent for long enough
        other.send(jaw_pose=[0.3, 0.0, 0.0])
        eventually(lambda: driver.received == 2)
        newest = driver.newest()
        assert newest is not None
        assert newest.state.jaw_pose[0] == np.float32(0.3)
        np.testing.assert_array_equal(newest.state.eyelids, [0.0, 0.0])  # given by the first sender only


def test_a_flood_is_dropped_unread_and_reception_recovers(driver: ZeroMqDriver, refusals: list[str]) -> None:
    socket = raw_push(driver)
    for _ in range(3000):
        socket.send(b"nonsense")
    eventually(lambda: driver.counts["malformed"] + driver.counts["flood"] == 3000)
    assert driver.counts["flood"] > 0
    assert len(refusals) < 200

    def received() -> bool:
        socket.send(msgspec.msgpack.encode(GOOD))
        return driver.received > 0

    eventually(received)
    socket.close()


def test_a_short_hash_identifies_the_head(driver: ZeroMqDriver) -> None:
    with ParameterClient(driver.address, HEAD[:16], "arkit52") as client:
        assert client.wait(120)
        client.send(eyelids=[0.1, 0.1])
        eventually(lambda: driver.received == 1)


def test_capture_times_of_another_clock_are_replaced(driver: ZeroMqDriver) -> None:
    with ParameterClient(driver.address, HEAD, "arkit52") as client:
        assert client.wait(120)
        client.send(eyelids=[0.1, 0.1], t_capture_ns=2**62)
        eventually(lambda: driver.received == 1)
    newest = driver.newest()
    assert newest is not None
    assert newest.state.t_capture_ns == newest.arrived_ns


def test_the_client_refuses_unknown_fields_and_never_blocks() -> None:
    with ParameterClient("tcp://127.0.0.1:9", HEAD, "arkit52") as client:
        with pytest.raises(ValueError, match="shape"):
            client.send(shape=[0.0])
        assert not client.send(eyelids=[0.0, 0.0])
        assert client.dropped == 1


def test_ipc_addresses_and_addresses_in_use(tmp_path: Path) -> None:
    def make(address: str) -> ZeroMqDriver:
        return ZeroMqDriver(address, basis="arkit52", head_sha256=HEAD, expressions=52, on_refused=pytest.fail)

    first = make(f"ipc://{tmp_path}/face")
    first.start()
    with ParameterClient(first.address, HEAD, "arkit52") as client:
        assert client.wait(120)
        client.send(eyelids=[0.0, 0.0])
        eventually(lambda: first.received == 1)
    first.stop()

    second = make("tcp://127.0.0.1:*")
    second.start()
    with pytest.raises(UserError, match="--zmq"):
        make(second.address).start()
    second.stop()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5577", "tcp://[::1]:1", "tcp://localhost:1", "ipc:///tmp/x"])
def test_local_addresses_are_allowed(address: str) -> None:
    check_address(address, allow_remote=False)


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:1", "tcp://*:1", "tcp://192.168.1.2:1", "tcp://[::]:1"])
def test_addresses_of_other_machines_need_permission(address: str) -> None:
    with pytest.raises(UserError, match="loopback"):
        check_address(address, allow_remote=False)
    check_address(address, allow_remote=True)


@pytest.mark.parametrize("address", ["", "5577", "http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://[::1", "tcp://a:b"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="not a ZeroMQ address"):
        check_address(address, allow_remote=True)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_user_error(payload: bytes) -> None:
    with contextlib.suppress(UserError):
        parameter_message.decode(payload)


values = st.floats(width=64) | st.integers() | st.none() | st.text(max_size=3)
bodies = st.dictionaries(
    st.sampled_from(["expression", "jaw_pose", "eye_pose", "eyelids", "rotation", "translation"]),
    values | st.lists(values, max_size=6) | st.lists(st.floats(), min_size=3, max_size=3),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies)
def test_every_accepted_message_gives_a_valid_state(body: dict[str, Any]) -> None:
    neutral = HeadState.neutral(52)
    try:
        payload = msgspec.msgpack.encode(GOOD | body)
    except OverflowError:
        return
    try:
        found, _ = parameter_message.validated_fields(parameter_message.decode(payload), 52, "arkit52", HEAD)
        state = parameter_message.with_fields(
            neutral, {name: value for name, value in found.items() if value is not None}
        )
    except UserError:
        return
    for name, array in state.arrays().items():
        assert array.dtype == np.float32
        assert array.shape == neutral.arrays()[name].shape
        assert np.isfinite(array).all()
    assert state.translation[2] > 0


def test_the_document_lists_the_weights_in_the_order_of_the_open_head() -> None:
    document = Path(__file__).parents[3] / "docs" / "protocols-zeromq.md"
    names = document.read_text(encoding="utf-8").rpartition("arkit52\n")[2].replace(",", " ").split()
    assert tuple(names) == load_head().expression_names

"""ZeroMQ over IPv4, IPv6 and names: receiving, publishing, subscribing, and the client, with real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.types import HeadState
from telepresence.client import ParameterClient
from telepresence.drivers.curve import CurveKeys
from telepresence.drivers.driver_settings import DriverSettings
from telepresence.drivers.state_publisher import StatePublisher
from telepresence.drivers.zeromq import ZeroMqDriver
from telepresence.drivers.zeromq_address import check_address

HEAD = "ab" * 32


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make(address: str, **options: object) -> ZeroMqDriver:
    return ZeroMqDriver(
        address,
        **({"basis": "arkit52", "head_sha256": HEAD, "expressions": 52, "on_refused": pytest.fail} | options),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("bound", "reported", "clients"),
    [
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:", ["127.0.0.1", "localhost", "LOCALHOST", "[::ffff:127.0.0.1]"]),
        ("tcp://[::1]:*", "tcp://[::1]:", ["[::1]", "localhost", "[0:0::1]"]),
        ("tcp://localhost:*", "tcp://127.0.0.1:", ["localhost", "127.0.0.1"]),
        ("tcp://[::ffff:127.0.0.1]:*", "tcp://127.0.0.1:", ["127.0.0.1"]),
    ],
)
def test_parameters_arrive_over_ipv4_ipv6_and_by_name(bound: str, reported: str, clients: list[str]) -> None:
    driver = make(bound)
    driver.start()
    assert driver.address.startswith(reported)
    port = driver.address.rpartition(":")[2]
    for count, host in enumerate(clients, start=1):
        with ParameterClient(f"tcp://{host}:{port}", HEAD, "arkit52") as client:
            assert client.wait(120), host
            assert client.send(eyelids=[0.5, 0.5])
            wait(lambda count=count: driver.counts["accepted"] + driver.counts["busy"] == count)  # type: ignore[misc]
    driver.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_daemon_follows_another_over_ipv4_ipv6_and_by_name(host: str) -> None:
    head: HeadModel = load_head()
    publisher = StatePublisher(f"tcp://{host}:*", head)
    publisher.start()
    port = publisher.address.rpartition(":")[2]
    for there in {host, "localhost"}:
        follower = make(f"tcp://{there}:{port}", head_sha256=head.sha256, subscribe=True)
        follower.start()

        def received(follower: ZeroMqDriver = follower) -> bool:
            publisher.send(HeadState.neutral(52).at(time.monotonic_ns()), None)
            return follower.received > 0

        wait(received)
        follower.stop()
    publisher.stop()


def test_the_file_of_a_local_socket_is_removed_unless_another_program_took_it_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    drivers = [make(f"ipc://{path}"), make(f"ipc://{path}")]
    publisher = StatePublisher(f"ipc://{tmp_path}/p", load_head())
    for started in (*drivers, publisher):
        started.start()
    assert {each.name for each in tmp_path.iterdir()} == {"s", "p"}
    for stopped in (drivers[0], publisher):
        stopped.stop()
    assert [each.name for each in tmp_path.iterdir()] == ["s"]
    with ParameterClient(f"ipc://{path}", HEAD, "arkit52") as client:
        assert client.wait(120)
    drivers[1].stop()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("everywhere", ["tcp://*:*", "tcp://0.0.0.0:*", "tcp://[::]:*"])
def test_all_addresses_need_keys_and_then_are_reached_over_each(everywhere: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reachable from other machines"):
        make(everywhere)
    keys = CurveKeys(tmp_path / "keys")
    driver = make(everywhere, keys=keys)
    driver.start()
    port = driver.address.rpartition(":")[2]
    own = (tmp_path / "keys" / "daemon.key", tmp_path / "keys" / "clients" / "client.key_secret")
    hosts = ["127.0.0.1", "localhost"] if "0.0.0.0" in everywhere else ["127.0.0.1", "[::1]", "localhost"]
    for host in hosts:
        with ParameterClient(f"tcp://{host}:{port}", HEAD, "arkit52", keys=own) as client:
            assert client.wait(120), host
    driver.stop()


@pytest.mark.parametrize(
    "address",
    [
        *("tcp://[::]:1", "tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::ffff:0.0.0.0]:1", "tcp://[::ffff:192.0.2.1]:1"),
        *("tcp://[2001:db8::1]:1", "tcp://[fe80::1%lo]:1", "tcp://lo:1", "tcp://localhost.example:1"),
    ],
)
def test_what_other_machines_reach_needs_keys(address: str) -> None:
    with pytest.raises(UserError, match="reachable from other machines"):
        check_address(address, allow_remote=False)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("tcp://[::g]:1", "not a ZeroMQ address"),
        ("tcp://[1:2]:1", "not a ZeroMQ address"),
        ("tcp://::1:5577", "not a ZeroMQ address"),
        ("tcp://[::1]", "not a ZeroMQ address"),
        ("tcp://[::1]:70000", "not a ZeroMQ address"),
        ("tcp://[127.0.0.1:1", "not a ZeroMQ address"),
        ("tcp://no-such-name.invalid:1", "is not known"),
    ],
)
def test_what_is_no_address_is_refused_before_a_socket_is_opened(address: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        check_address(address, allow_remote=True)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=told):
        ParameterClient(address, HEAD, "arkit52")


def test_a_client_needs_one_machine_and_one_port() -> None:
    for address in ("tcp://*:1", "tcp://localhost:*"):
        with pytest.raises(UserError, match="cannot connect to"):
            ParameterClient(address, HEAD, "arkit52")


def test_a_client_that_was_there_first_finds_the_daemon_at_the_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with ParameterClient(f"tcp://localhost:{port}", HEAD, "arkit52") as client:
        driver = make(f"tcp://localhost:{port}")
        driver.start()
        assert client.wait(120)
        driver.stop()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (DriverSettings(publish="tcp://[::]:1"), "reachable from other machines"),
        (DriverSettings(subscribe="tcp://192.0.2.1:1"), "reachable from other machines"),
        (DriverSettings(publish="tcp://[::1:1"), "not a ZeroMQ address"),
        (DriverSettings(subscribe="tcp://localhost:*"), "cannot connect to"),
        (DriverSettings(subscribe="tcp://*:1", keys="keys"), "cannot connect to"),
        (DriverSettings(subscribe="tcp://no-such-name.invalid:1", keys="keys"), "is not known"),
    ],
)
def test_settings_with_unusable_addresses_are_refused_before_anything_starts(
    settings: DriverSettings, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        settings.check()
    DriverSettings(publish="tcp://[::1]:1", subscribe="tcp://localhost:1").check()

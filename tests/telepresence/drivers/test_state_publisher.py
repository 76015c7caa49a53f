"""Published states of one daemon move the face of another; CURVE keys restrict access."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zmq
import zmq.auth

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.types import HeadState
from telepresence.client import ParameterClient
from telepresence.drivers.curve import CurveKeys, load_key
from telepresence.drivers.state_publisher import StatePublisher
from telepresence.drivers.zeromq import ZeroMqDriver

SMILE = HeadState(np.full(52, 0.25, np.float32), t_capture_ns=1)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def driver_of(head: HeadModel, address: str, *, subscribe: bool = False, keys: CurveKeys | None = None) -> ZeroMqDriver:
    driver = ZeroMqDriver(
        address,
        basis=head.basis,
        head_sha256=head.sha256,
        expressions=len(head.expression_names),
        on_refused=pytest.fail,
        subscribe=subscribe,
        keys=keys,
    )
    driver.start()
    return driver


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def publish_until_received(publisher: StatePublisher, driver: ZeroMqDriver) -> None:
    """Publish until the subscription takes effect, which takes a moment."""

    def received() -> bool:
        publisher.send(SMILE.at(time.monotonic_ns()), "0123456789abcdef")
        return driver.received > 0

    until(received)


def test_published_states_move_the_face_of_a_subscriber(head: HeadModel) -> None:
    publisher = StatePublisher("tcp://127.0.0.1:*", head)
    publisher.start()
    driver = driver_of(head, publisher.address, subscribe=True)
    publish_until_received(publisher, driver)
    newest = driver.newest()
    assert newest is not None
    for name, values in SMILE.arrays().items():
        np.testing.assert_array_equal(newest.state.arrays()[name], values)
    publisher.stop()
    publisher.stop()
    publisher.send(SMILE, None)  # after stop: no effect
    driver.stop()


def test_publishing_without_a_reading_subscriber_never_blocks(head: HeadModel) -> None:
    publisher = StatePublisher("tcp://127.0.0.1:*", head)
    publisher.start()
    idle_subscriber: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    idle_subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    idle_subscriber.connect(publisher.address)
    started = time.monotonic()
    for _ in range(500):
        publisher.send(SMILE, None)
    assert publisher.sent == 500
    assert time.monotonic() - started < 60  # send() never blocks
    idle_subscriber.close(linger=0)
    publisher.stop()


def test_other_machines_need_keys(head: HeadModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"drivers\.keys"):
        StatePublisher("tcp://0.0.0.0:5600", head)
    StatePublisher("tcp://0.0.0.0:5600", head, CurveKeys(tmp_path / "keys"))


def test_only_clients_with_a_known_key_move_the_face(head: HeadModel, tmp_path: Path) -> None:
    keys = CurveKeys(tmp_path / "keys")
    for path in tmp_path.rglob("*.key_secret"):
        assert path.stat().st_mode & 0o077 == 0
    zmq.auth.create_certificates(tmp_path, "stranger")
    server, friend = tmp_path / "keys" / "daemon.key", tmp_path / "keys" / "clients" / "client.key_secret"
    driver = driver_of(head, "tcp://127.0.0.1:*", keys=keys)
    with (
        ParameterClient(driver.address, head.sha256, "arkit52") as plain,
        ParameterClient(
            driver.address, head.sha256, "arkit52", keys=(server, tmp_path / "stranger.key_secret")
        ) as stranger,
        ParameterClient(driver.address, head.sha256, "arkit52", keys=(server, friend)) as client,
    ):
        assert client.wait(120)
        assert client.send(eyelids=[0.1, 0.1])
        until(lambda: driver.received == 1)
        assert not plain.wait(0.2)
        assert not stranger.wait(0.2)
        assert not plain.send(eyelids=[0.9, 0.9])
        assert not stranger.send(eyelids=[0.9, 0.9])
    driver.stop()
    driver.stop()


def test_a_daemon_receives_from_a_publisher_with_keys(head: HeadModel, tmp_path: Path) -> None:
    there, here = CurveKeys(tmp_path / "there"), CurveKeys(tmp_path / "here")
    publisher = StatePublisher("tcp://127.0.0.1:*", head, there)
    publisher.start()
    (tmp_path / "there" / "clients" / "here.key").write_bytes((tmp_path / "here" / "daemon.key").read_bytes())
    with pytest.raises(UserError, match=r"publisher\.key"):
        driver_of(head, publisher.address, subscribe=True, keys=here)
    publisher.stop()
    publisher = StatePublisher(publisher.address, head, there)  # clients are read at the start
    publisher.start()
    (tmp_path / "here" / "publisher.key").write_bytes((tmp_path / "there" / "daemon.key").read_bytes())
    driver = driver_of(head, publisher.address, subscribe=True, keys=here)
    publish_until_received(publisher, driver)
    driver.stop()
    publisher.stop()


@pytest.mark.parametrize("text", ["", "public-key = 'x'", "public-key = '" + "~" * 40 + "'", "\0\xff"])
def test_an_invalid_key_file_gives_a_one_line_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "some.key"
    path.write_text(text)
    with pytest.raises(UserError, match="key"):
        load_key(path)
    with pytest.raises(UserError, match="key"):
        load_key(tmp_path / "absent.key", secret=False)


def test_a_folder_that_cannot_be_created_gives_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write keys"):
        CurveKeys(tmp_path / "file" / "keys")

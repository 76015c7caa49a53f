"""Tracked states of one daemon move the face of another; keys decide who may."""

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
from telepresence.drivers.curve import Keys, load
from telepresence.drivers.publisher import StatePublisher
from telepresence.drivers.zeromq import ZeroMqDriver

SMILE = HeadState(np.full(52, 0.25, np.float32), t_capture_ns=1)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def driver_of(head: HeadModel, address: str, *, subscribe: bool = False, keys: Keys | None = None) -> ZeroMqDriver:
    driver = ZeroMqDriver(
        address,
        basis=head.basis,
        head_sha256=head.sha256,
        expressions=len(head.expression_names),
        refused=pytest.fail,
        subscribe=subscribe,
        keys=keys,
    )
    driver.start()
    return driver


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def publish_until_heard(publisher: StatePublisher, driver: ZeroMqDriver) -> None:
    """A subscriber hears what is published once it has joined, which takes a moment."""

    def heard() -> bool:
        publisher.send(SMILE.at(time.monotonic_ns()), "0123456789abcdef")
        return driver.received > 0

    until(heard)


def test_what_one_tracks_moves_the_other(head: HeadModel) -> None:
    publisher = StatePublisher("tcp://127.0.0.1:*", head)
    publisher.start()
    driver = driver_of(head, publisher.address, subscribe=True)
    publish_until_heard(publisher, driver)
    newest = driver.newest()
    assert newest is not None
    for name, values in SMILE.arrays().items():
        np.testing.assert_array_equal(newest.state.arrays()[name], values)
    publisher.stop()
    publisher.stop()
    publisher.send(SMILE, None)  # nobody is there any more
    driver.stop()


def test_nobody_listens_and_nothing_grows(head: HeadModel) -> None:
    publisher = StatePublisher("tcp://127.0.0.1:*", head)
    publisher.start()
    deaf: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    deaf.setsockopt(zmq.SUBSCRIBE, b"")
    deaf.connect(publisher.address)
    started = time.monotonic()
    for _ in range(500):
        publisher.send(SMILE, None)
    assert publisher.sent == 500
    assert time.monotonic() - started < 60  # it never waits for who does not read
    deaf.close(linger=0)
    publisher.stop()


def test_other_machines_need_keys(head: HeadModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"drivers\.keys"):
        StatePublisher("tcp://0.0.0.0:5600", head)
    StatePublisher("tcp://0.0.0.0:5600", head, Keys(tmp_path / "keys"))


def test_only_who_has_a_key_moves_the_face(head: HeadModel, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
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
        assert client.wait(10)
        assert client.send(eyelids=[0.1, 0.1])
        until(lambda: driver.received == 1)
        assert not plain.wait(0.2)
        assert not stranger.wait(0.2)
        assert not plain.send(eyelids=[0.9, 0.9])
        assert not stranger.send(eyelids=[0.9, 0.9])
    driver.stop()
    driver.stop()


def test_a_daemon_with_keys_hears_another_that_has_its_key(head: HeadModel, tmp_path: Path) -> None:
    there, here = Keys(tmp_path / "there"), Keys(tmp_path / "here")
    publisher = StatePublisher("tcp://127.0.0.1:*", head, there)
    publisher.start()
    (tmp_path / "there" / "clients" / "here.key").write_bytes((tmp_path / "here" / "daemon.key").read_bytes())
    with pytest.raises(UserError, match=r"publisher\.key"):
        driver_of(head, publisher.address, subscribe=True, keys=here)
    publisher.stop()
    publisher = StatePublisher(publisher.address, head, there)  # who may come is read at the start
    publisher.start()
    (tmp_path / "here" / "publisher.key").write_bytes((tmp_path / "there" / "daemon.key").read_bytes())
    driver = driver_of(head, publisher.address, subscribe=True, keys=here)
    publish_until_heard(publisher, driver)
    driver.stop()
    publisher.stop()


@pytest.mark.parametrize("text", ["", "public-key = 'x'", "public-key = '" + "~" * 40 + "'", "\0\xff"])
def test_what_is_no_key_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "some.key"
    path.write_text(text)
    with pytest.raises(UserError, match="key"):
        load(path)
    with pytest.raises(UserError, match="key"):
        load(tmp_path / "absent.key", secret=False)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make keys"):
        Keys(tmp_path / "file" / "keys")

"""Playback of a recorded take, and the command that sends one."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from insta_runtime.errors import UserError
from insta_runtime.head import load_head
from insta_runtime.tracked import write_take
from insta_runtime.types import Camera, HeadState, Take
from telepresence.commands.send import send
from telepresence.drivers.take_driver import TakePlayback, play_take, take_schedule
from telepresence.drivers.zeromq import ZeroMqDriver

FRAMES = 12


def make_take(head_sha256: str = "0" * 64, *, stamped: bool = True) -> Take:
    states = []
    for index in range(FRAMES):
        expression = np.zeros(52, np.float32)
        expression[0] = index / FRAMES
        states.append(HeadState(expression, t_capture_ns=10**9 + index * 20_000_000 if stamped else 0))
    valid = np.ones(FRAMES, dtype=np.bool_)
    valid[3] = False
    camera = Camera(600.0, 600.0, 256.0, 256.0, 512, 512)
    return Take(tuple(states), valid, np.zeros(60, np.float32), camera, (0.0, 0.0, 512.0), head_sha256, 50.0)


@pytest.mark.parametrize("stamped", [True, False])
def test_the_schedule_follows_capture_times_and_omits_untracked_frames(stamped: bool) -> None:
    entries = take_schedule(make_take(stamped=stamped))
    expected = [index * 0.02 for index in range(FRAMES) if index != 3]
    np.testing.assert_allclose([due for due, _ in entries], expected, atol=1e-9)


def test_playback_stamps_each_state_with_the_time_at_which_it_is_due() -> None:
    before = time.monotonic_ns()
    stamps = [state.t_capture_ns for state in play_take(make_take())]
    assert stamps
    assert stamps == sorted(stamps)
    assert stamps[0] >= before
    assert stamps[-1] - before >= (FRAMES - 1) * 20_000_000


def test_playback_ends_when_stop_is_set() -> None:
    stop = threading.Event()
    stop.set()
    assert list(play_take(make_take(), stop)) == []


def test_a_long_pause_in_a_take_is_waited_for_in_steps() -> None:
    """So that the playing thread reports to its supervisor meanwhile."""
    take = make_take()
    states = tuple(replace(state, t_capture_ns=1 + index * 3600 * 10**9) for index, state in enumerate(take.states))
    playback, stop = TakePlayback(replace(take, states=states)), threading.Event()
    assert playback.next(stop) is not None
    assert playback.next(stop, 0.001) is None
    assert playback.next(stop, 0.001) is None
    assert not playback.over


def test_send_plays_a_take_into_the_daemon(tmp_path: Path) -> None:
    head = load_head()
    write_take(tmp_path / "take.npz", make_take(head.sha256))
    refusals: list[str] = []
    driver = ZeroMqDriver(
        "tcp://127.0.0.1:*",
        basis=head.basis,
        head_sha256=head.sha256,
        expressions=len(head.expression_names),
        on_refused=refusals.append,
    )
    driver.start()
    send(take=tmp_path / "take.npz", zmq=driver.address, loop=False)
    deadline = time.monotonic() + 120
    while (newest := driver.newest()) is None or newest.state.expression[0] < (FRAMES - 1.5) / FRAMES:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    driver.stop()
    assert refusals == []


def test_send_without_a_daemon_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telepresence.commands.send.CONNECT_S", 0.05)
    write_take(tmp_path / "take.npz", make_take())
    with pytest.raises(UserError, match="telepresence run"):
        send(take=tmp_path / "take.npz", zmq=f"ipc://{tmp_path}/absent", loop=False)
    with pytest.raises(UserError, match="not a ZeroMQ address"):
        send(take=tmp_path / "take.npz", zmq="5577", loop=False)
    with pytest.raises(UserError):
        send(take=tmp_path / "missing.npz", zmq="tcp://127.0.0.1:5577", loop=False)

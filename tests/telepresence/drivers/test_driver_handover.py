"""Handover of the face from one driver to the next, and idle motion without a driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from insta_runtime.errors import UserError
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.head import HeadModel, load_head
from insta_runtime.smoothstep import smoothstep
from insta_runtime.tracked import write_take
from insta_runtime.types import Camera, HeadState, Take
from telepresence.call.driver_receivers import open_receivers
from telepresence.call.driver_selection import DriverSelector
from telepresence.client import ParameterClient
from telepresence.config import RunConfig
from telepresence.drivers.driver_settings import DriverSettings, parse_drivers
from telepresence.drivers.idle_motion import BLINKS_S, IdleMotion
from telepresence.drivers.state_blend import blend_cameras, blend_states
from telepresence.drivers.take_driver import TakeDriver
from telepresence.runtime.clock import LoopTimer
from telepresence.runtime.frames import TrackedState
from telepresence.runtime.telemetry import Telemetry
from tests.support import face_packets as packets

CAMERA = Camera(600.0, 600.0, 256.0, 256.0, 512, 512)
LEARNED = Camera(500.0, 500.0, 128.0, 128.0, 256, 256)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def state_of(weight: float, turn: float = 0.0, t_capture_ns: int = 0) -> HeadState:
    rotation = axis_angle(np.diag([1.0, -1.0, -1.0]) @ rotation_matrix(np.array([0.0, turn, 0.0])))
    return HeadState(np.full(52, weight, np.float32), rotation=rotation.astype(np.float32), t_capture_ns=t_capture_ns)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- blending


def test_a_blend_starts_and_ends_exactly_and_rotates_at_constant_speed() -> None:
    start, end = state_of(0.0, -0.4, 5), state_of(1.0, 0.4, 9)
    for part, weight, turn in ((0.0, 0.0, -0.4), (0.25, 0.25, -0.2), (1.0, 1.0, 0.4)):
        mixed = blend_states(start, end, part)
        np.testing.assert_allclose(mixed.expression, weight, atol=1e-6)
        np.testing.assert_allclose(
            rotation_matrix(mixed.rotation), rotation_matrix(state_of(0, turn).rotation), atol=1e-6
        )
        assert mixed.t_capture_ns == 9


angles = st.floats(-1.2, 1.2)


@given(st.tuples(angles, angles, angles), st.tuples(angles, angles, angles), st.floats(0, 1))
def test_blended_rotations_take_the_shortest_arc(one: tuple[float, ...], other: tuple[float, ...], part: float) -> None:
    """A head that faces the camera is rotated by about pi, where axis-angle vectors are discontinuous."""
    ahead = np.diag([1.0, -1.0, -1.0])
    first, last = (ahead @ rotation_matrix(np.array(turn)) for turn in (one, other))
    start, end = (HeadState(np.zeros(52, np.float32), rotation=axis_angle(r).astype(np.float32)) for r in (first, last))

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(axis_angle(a.T @ b)))

    middle = rotation_matrix(blend_states(start, end, part).rotation)
    whole = apart(first, last)
    assert apart(first, middle) == pytest.approx(part * whole, abs=1e-4)
    assert apart(middle, last) == pytest.approx((1 - part) * whole, abs=1e-4)


def test_cameras_of_different_sizes_blend() -> None:
    assert blend_cameras(CAMERA, LEARNED, 0.0) == CAMERA.scaled(256, 256)
    assert blend_cameras(CAMERA, LEARNED, 1.0) == LEARNED
    assert blend_cameras(CAMERA, LEARNED, 0.5).fx == 400.0


# ---- idle motion


@pytest.mark.parametrize("basis", ["arkit52", "flame"])
def test_an_idle_face_blinks_breathes_and_moves_its_eyes(basis: str, head: HeadModel) -> None:
    names = head.expression_names if basis == "arkit52" else tuple(f"e{index}" for index in range(100))
    neutral = HeadState.neutral(len(names))
    idle, again = IdleMotion(basis, names, seed=3), IdleMotion(basis, names, seed=3)
    lids, heights = [], []
    for step in range(2000):
        state = idle.state(neutral, step / 25)
        if step % 50 == 0:
            same = again.state(neutral, step / 25)
            for name, array in state.arrays().items():
                assert array.dtype == np.float32
                np.testing.assert_array_equal(array, same.arrays()[name])
        lid = state.expression[names.index("eyeBlinkLeft")] if basis == "arkit52" else state.eyelids[0]
        lids.append(float(lid))
        heights.append(float(state.translation[1]))
        assert np.linalg.norm(axis_angle(rotation_matrix(neutral.rotation).T @ rotation_matrix(state.rotation))) < 0.06
        assert np.abs(state.eye_pose).max() < 0.2
    blinks = sum(before < 0.5 <= after for before, after in pairwise(lids))
    assert 80 / BLINKS_S[1] - 2 <= blinks <= 80 / BLINKS_S[0] + 2
    assert max(lids) > 0.95
    assert np.mean(np.array(lids) > 0.05) < 0.2, "eyes are open most of the time"
    assert 0.001 < max(heights) - min(heights) < 0.004
    other = IdleMotion(basis, names, seed=4).state(neutral, 80.0)
    assert not np.array_equal(other.eye_pose, idle.state(neutral, 80.0).eye_pose)
    start = IdleMotion(basis, names).state(neutral, 0.0)
    np.testing.assert_allclose(rotation_matrix(start.rotation), rotation_matrix(neutral.rotation), atol=1e-6)


# ---- selection of the driver, with real sockets


class Drivers:
    """Receivers and selector of a call whose avatar has no expression statistics."""

    def __init__(self, head: HeadModel, drive: str, settings: DriverSettings) -> None:
        telemetry = Telemetry()
        self.receivers = open_receivers(
            RunConfig(zmq="tcp://127.0.0.1:*"),
            settings,
            head,
            telemetry=telemetry,
            new_state=threading.Event(),
            expression_stats=lambda: None,
        )
        self.selector = DriverSelector(
            self.receivers,
            drive,
            settings,
            head,
            idles=settings.idle,
            telemetry=telemetry,
            expression_stats=lambda: None,
        )


Make = Callable[..., Drivers]


def freeze_clock(monkeypatch: pytest.MonkeyPatch, drivers: Drivers, name: str) -> None:
    """Stop the selector's clock at the newest message of the driver ``name``, so that it stays recent."""
    newest = drivers.receivers.receivers[name].newest()
    assert newest is not None
    monkeypatch.setattr("telepresence.call.driver_selection.now_ns", lambda: newest.arrived_ns)


@pytest.fixture
def make(head: HeadModel) -> Iterator[Make]:
    """``make(drive, **settings)`` returns started drivers."""
    opened: list[Drivers] = []

    def start(drive: str = "auto", **settings: object) -> Drivers:
        made = Drivers(head, drive, DriverSettings(**settings))  # type: ignore[arg-type]
        made.receivers.start()
        opened.append(made)
        return made

    yield start
    for made in opened:
        made.receivers.stop()
        made.receivers.stop()


def test_the_tracker_hands_over_to_a_program_and_back(
    make: Make, head: HeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [time.monotonic_ns()]
    monkeypatch.setattr("telepresence.call.driver_selection.now_ns", lambda: clock[0])
    drivers = make(fade_s=0.3)
    tracked = TrackedState(state_of(0.0, -0.3), CAMERA)
    drivers.selector.on_tracked_state(tracked.state)
    assert drivers.selector.head_state(tracked, LEARNED) == (tracked.state, CAMERA)
    assert drivers.receivers.zmq_address is not None
    with ParameterClient(drivers.receivers.zmq_address, head.sha256, "arkit52") as client:
        assert client.wait(120)
        client.send(expression=np.ones(52))
        until(lambda: drivers.receivers.status()["zmq"]["counts"] == {"accepted": 1})
    newest = drivers.receivers.receivers["zmq"].newest()
    assert newest is not None
    weights, chosen = [], []
    for step in range(100):
        clock[0] = newest.arrived_ns + step * 10_000_000
        drivers.selector.on_tracked_state(tracked.state)
        state, _ = drivers.selector.head_state(tracked, LEARNED)
        assert state is not None
        assert drivers.selector.receiving == drivers.selector.external == (step < 50)
        weights.append(float(state.expression[0]))
        chosen.append(drivers.selector.driver)
    assert chosen == ["zmq"] * 50 + ["tracker"] * 50
    assert weights[0] == 0.0
    assert weights[:50] == sorted(weights[:50])
    assert weights[30:51] == [1.0] * 21
    assert weights[50:] == sorted(weights[50:], reverse=True)
    assert weights[80:] == [0.0] * 20
    assert np.abs(np.diff(weights)).max() < 0.06, "faded in both directions"


def test_an_interrupted_handover_continues_without_a_jump(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [time.monotonic_ns()]
    monkeypatch.setattr("telepresence.call.driver_selection.now_ns", lambda: clock[0])
    drivers = make()
    tracked = TrackedState(state_of(0.8), CAMERA)
    drivers.selector.on_tracked_state(tracked.state)
    drivers.selector.head_state(tracked, LEARNED)
    weights = []
    for step in range(150):
        clock[0] += 20_000_000
        if step >= 80:  # the face returns while it is still fading to rest
            drivers.selector.on_tracked_state(tracked.state)
        state, _ = drivers.selector.head_state(tracked, LEARNED)
        assert state is not None
        weights.append(float(state.expression[0]))
    assert drivers.selector.driver == "tracker"
    assert weights[-1] == np.float32(0.8)
    assert np.abs(np.diff(weights)).max() < 0.1


def test_a_lost_face_relaxes_and_idles(make: Make) -> None:
    drivers = make()
    tracked = TrackedState(state_of(0.6, 0.5), CAMERA)
    assert drivers.selector.head_state(None, LEARNED) == (None, LEARNED), "no face without a tracked state"
    drivers.selector.on_tracked_state(tracked.state)
    drivers.selector.head_state(tracked, LEARNED)
    until(lambda: drivers.selector.head_state(tracked, LEARNED)[0] is not tracked.state)
    assert drivers.selector.driver == "idle"
    first, _ = drivers.selector.head_state(tracked, LEARNED)
    time.sleep(0.1)
    later, _ = drivers.selector.head_state(tracked, LEARNED)
    assert first is not None
    assert later is not None
    assert later.t_capture_ns > first.t_capture_ns
    assert np.abs(later.rotation - first.rotation).max() < 0.2
    assert drivers.selector.head_state(None, LEARNED, object()) == (None, LEARNED), "no idle motion for another subject"


def test_without_idle_motion_a_lost_face_is_held(make: Make) -> None:
    drivers = make(idle=False)
    tracked = TrackedState(state_of(0.6), CAMERA)
    drivers.selector.on_tracked_state(tracked.state)
    drivers.selector._seen_ns = 0
    assert drivers.selector.head_state(tracked, LEARNED) == (tracked.state, CAMERA)
    assert drivers.selector.driver == "tracker"


def test_a_phone_drives_a_call_without_a_camera(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    drivers = make("livelink", livelink="0")
    port = int(drivers.receivers.status()["livelink"]["address"].rpartition(":")[2])
    assert drivers.selector.head_state(None, LEARNED) == (None, LEARNED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.sendto(packets.livelink({"JawOpen": 0.5}), ("127.0.0.1", port))
        until(lambda: drivers.receivers.status()["livelink"]["counts"].get("accepted") == 1)
    freeze_clock(monkeypatch, drivers, "livelink")
    state, camera = drivers.selector.head_state(None, LEARNED)
    assert state is not None
    assert state.expression.max() == pytest.approx(0.5)
    assert camera == LEARNED
    drivers.receivers.recalibrate()


def test_rendering_uses_states_that_arrive_faster_than_frames(make: Make, head: HeadModel) -> None:
    """`wait` starts a frame with a state that has just arrived, not with an older one."""
    drivers = make()
    assert drivers.receivers.zmq_address is not None
    moved = threading.Event()
    receiver = drivers.receivers.receivers["zmq"]
    receiver._on_accepted = moved.set
    stop = threading.Event()

    def send_states(client: ParameterClient) -> None:
        while not stop.wait(0.02):
            client.send(eyelids=[0.1, 0.1])

    with ParameterClient(drivers.receivers.zmq_address, head.sha256, "arkit52") as client:
        assert client.wait(120)
        sending = threading.Thread(target=send_states, args=(client,))
        sending.start()
        until(lambda: receiver.interval() is not None)
        seqs, pace = [], LoopTimer(10.0)
        for _ in range(5):
            time.sleep(0.012)  # a frame is rendered meanwhile
            drivers.selector.wait(moved, 1.0, pace, stop)
            drivers.selector.head_state(None, LEARNED)
            newest = receiver.newest()
            assert newest is not None
            seqs.append(newest.seq)
        stop.set()
        sending.join()
    assert seqs == sorted(seqs)
    assert len(set(seqs)) >= 3, "frames show new states"


def test_published_states_of_one_call_move_the_face_of_another(
    make: Make, head: HeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make(publish="tcp://127.0.0.1:*")
    there = make("subscription", subscribe=here.receivers.status()["publisher"]["address"])
    shape = np.zeros(head.shape_dirs.shape[-1], np.float32)

    def received() -> bool:
        here.selector.on_tracked_state(state_of(0.75, 0.2, time.monotonic_ns()), shape)
        return there.selector.receiving

    until(received)
    freeze_clock(monkeypatch, there, "subscription")
    state, _ = there.selector.head_state(None, LEARNED)
    assert state is not None
    np.testing.assert_array_equal(state.expression, np.float32(0.75))
    assert there.selector.driver == "subscription"


# ---- takes


def take_of(head: HeadModel, frames: int = 6) -> Take:
    states = tuple(state_of(index / frames, t_capture_ns=1 + index * 10_000_000) for index in range(frames))
    shape = np.zeros(head.shape_dirs.shape[-1], np.float32)
    return Take(states, np.ones(frames, np.bool_), shape, CAMERA, (0.0, 0.0, 512.0), head.sha256, 100.0)


def test_a_take_plays_in_a_loop_without_a_jump(head: HeadModel) -> None:
    weights: list[float] = []
    driver = TakeDriver(take_of(head), "0" * 16, on_accepted=lambda: None)

    def record() -> None:
        newest = driver.newest()
        assert newest is not None
        weights.append(float(newest.state.expression[0]))

    driver._on_accepted = record
    driver.start()
    until(lambda: len(weights) > 20)
    driver.stop()
    seams = [index for index in range(1, len(weights)) if weights[index] < weights[index - 1] - 0.3]
    assert not seams, weights


def test_a_take_drives_a_call(make: Make, head: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_take(tmp_path / "take.npz", take_of(head))
    drivers = make(take=str(tmp_path / "take.npz"))
    until(lambda: drivers.selector.receiving)
    freeze_clock(monkeypatch, drivers, "take")
    assert drivers.selector.driver == "take"
    state, camera = drivers.selector.head_state(None, LEARNED)
    assert state is not None
    assert camera == LEARNED


def test_a_missing_take_or_one_of_another_head_gives_a_one_line_error(
    make: Make, head: HeadModel, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        make(take=str(tmp_path / "absent.npz"))
    other = take_of(head)
    write_take(tmp_path / "take.npz", Take(**(vars(other) | {"head_sha256": "f" * 64})))
    with pytest.raises(UserError, match="another head"):
        make(take=str(tmp_path / "take.npz"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_take_gives_a_one_line_error_or_plays(data: st.DataObject, head: HeadModel, tmp_path: Path) -> None:
    path = tmp_path / "take.npz"
    write_take(path, take_of(head))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        drivers = Drivers(head, "auto", DriverSettings(take=str(path)))
    except UserError:
        return
    take = drivers.receivers.receivers["take"]
    take.start()
    until(lambda: take.newest() is not None)
    take.stop()


@pytest.mark.parametrize("drive", ["livelink", "take", "subscription"])
def test_a_driver_mode_without_its_driver_is_refused(drive: str, make: Make) -> None:
    with pytest.raises(UserError, match=drive):
        make(drive)


def test_the_option_is_parsed_to_driver_settings() -> None:
    assert parse_drivers(["livelink", "vmc=4000", "take=a=b.npz"]) == {
        "drivers.livelink": "on",
        "drivers.vmc": "4000",
        "drivers.take": "a=b.npz",
    }
    for wrong in ("face", "take", "=1"):
        with pytest.raises(UserError):
            parse_drivers([wrong])


def test_smoothstep_is_constant_beyond_both_ends() -> None:
    assert [smoothstep(part) for part in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]

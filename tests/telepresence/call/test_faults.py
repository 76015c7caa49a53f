"""Faults of the parts of a running call: each is handled as docs/supervision.md says, and is seen in `/status`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from insta_runtime.avatar import Avatar
from insta_runtime.errors import UserError
from insta_runtime.head import load_head
from insta_runtime.types import HeadState
from telepresence.call.call_options import CallOptions
from telepresence.call.camera_manager import CameraManager
from telepresence.call.daemon import Daemon
from telepresence.client import ParameterClient
from telepresence.config import Config, load_config
from telepresence.display.display import Display
from telepresence.drivers.expression_transfer import LiveTransfer
from telepresence.runtime.failure_policy import POLICIES
from telepresence.runtime.frames import CameraFrame, TrackedFrame, TrackedState
from telepresence.sources.synthetic import SyntheticSource
from telepresence.streaming import MediaServer
from telepresence.tracking.ground_truth_tracker import GroundTruthTracker
from tests.support.small_call import IN_PROCESS_CALL, PATIENCE_S, wait_for_status, wait_until

SOON = (0.01, 0.01, 0.01)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("cpu", (*IN_PROCESS_CALL, "run.autosave_s=0.2"), "cpu")


class Camera:
    """Camera before the synthetic actor; ``fault`` changes its frames or raises an error."""

    name, fps = "camera", 12.5

    def __init__(self, actor: SyntheticSource) -> None:
        self.identity = actor.identity
        self.fault: Callable[[CameraFrame | None], CameraFrame | None] | None = None
        self._actor = actor

    def read(self, timeout: float) -> CameraFrame | None:
        frame = self._actor.read(timeout)
        return self.fault(frame) if self.fault is not None else frame

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def actor() -> SyntheticSource:
    return SyntheticSource(128, drawn=128)


@pytest.fixture
def camera(actor: SyntheticSource, monkeypatch: pytest.MonkeyPatch) -> Camera:
    """The camera that ``--source`` opens."""
    camera = Camera(actor)
    monkeypatch.setattr("telepresence.call.camera_manager.open_source", lambda *_, **__: camera)
    return camera


@pytest.fixture
def start(
    config: Config,
    camera: Camera,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[], Daemon]]:
    """Start a call that has begun to learn, with short pauses before restarts."""
    for stage in ("capture", "track", "render", "train"):
        monkeypatch.setitem(POLICIES, stage, replace(POLICIES[stage], pauses=SOON))
    monkeypatch.setitem(POLICIES, "camera", replace(POLICIES["camera"], pauses=(0.05,), silent_s=0.5))
    monkeypatch.setattr("telepresence.call.camera_reader.CAMERA", POLICIES["camera"])
    running: list[Daemon] = []

    def begin() -> Daemon:
        daemon = Daemon(config, CallOptions("synthetic", tmp_path / "avatar"))
        running.append(daemon)
        daemon.start()
        wait_for_status(daemon, lambda status: status["steps"] > 0)
        return daemon

    yield begin
    for daemon in running:
        daemon.stop()


class Fault:
    """Makes a method raise ``error`` while it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> None:
        self.error: Exception | None = None
        real = getattr(owner, method)

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.error is not None:
                raise self.error
            return real(*arguments, **keywords)

        monkeypatch.setattr(owner, method, call)


def test_a_call_survives_camera_tracker_and_training(
    start: Callable[[], Daemon], camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Fault(monkeypatch, GroundTruthTracker, "track")
    daemon = start()
    camera_session = daemon._cameras.current
    assert camera_session is not None

    # The camera is unplugged and plugged in again.
    def unplugged(_: object) -> None:
        raise UserError("webcam: it was unplugged")

    camera.fault = unplugged
    status = wait_for_status(daemon, lambda status: status["stages"]["camera"]["state"] == "restarting")
    assert any("it was unplugged" in line for line in status["errors"])
    wait_for_status(daemon, lambda status: status["state"] == "lost")
    camera.fault = None
    status = wait_for_status(daemon, lambda status: status["state"] in ("learning", "live"))
    assert status["errors"] == []
    assert status["stages"]["camera"]["restarts"] > 0
    assert status["stages"]["camera"]["error"] == "webcam: it was unplugged"

    # The camera sends no frames: it is opened again.
    before = status["stages"]["camera"]["restarts"]
    camera.fault = lambda _: None
    status = wait_for_status(daemon, lambda status: status["stages"]["camera"]["restarts"] > before)
    assert "no frame" in status["stages"]["camera"]["error"]
    camera.fault = None
    wait_for_status(daemon, lambda status: status["stages"]["camera"]["state"] == "running")

    # The tracker raises an error: a new one takes over.
    broken = camera_session.tracker
    tracker.error = ValueError("no such landmark")
    wait_for_status(daemon, lambda status: status["stages"]["track"]["restarts"] > 0)
    tracker.error = None
    status = wait_for_status(daemon, lambda status: status["stages"]["track"]["state"] == "running")
    assert status["stages"]["track"]["error"] == "ValueError: no such landmark"
    assert camera_session.tracker is not broken

    # Training raises errors: the avatar is displayed as it is, and learning goes on after that.
    assert camera_session.learner is not None
    training = Fault(monkeypatch, type(camera_session.learner.trainer), "step")
    training.error = ValueError("not a number")
    status = wait_for_status(daemon, lambda status: status["training"]["state"] == "failed")
    assert "not a number" in status["training"]["reason"]
    shown = daemon.telemetry.shown.total
    wait_for_status(daemon, lambda _: daemon.telemetry.shown.total > shown)
    training.error = None
    steps = status["steps"]
    wait_for_status(daemon, lambda status: status["training"]["state"] == "learning" and status["steps"] > steps)


def test_a_lost_gpu_ends_the_call_with_the_avatar_of_the_last_save(
    start: Callable[[], Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon = start()
    wait_until((tmp_path / "avatar").exists)
    camera_session = daemon._cameras.current
    assert camera_session is not None
    assert camera_session.learner is not None
    lost = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")
    for method in ("step", "state"):
        Fault(monkeypatch, type(camera_session.learner.trainer), method).error = lost
    assert daemon.stopping.wait(PATIENCE_S)
    daemon.stop()
    assert daemon.failure is not None
    assert daemon.failure.startswith("the GPU is lost")
    assert "\n" not in daemon.failure
    assert Avatar.load(tmp_path / "avatar", load_head(), "cpu").steps > 0


def test_rendering_that_hangs_ends_the_call_with_the_avatar_saved(
    start: Callable[[], Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon = start()
    free = threading.Event()

    def hang(*_: object) -> None:
        free.wait(PATIENCE_S)

    render = daemon._supervisor._workers["render"]
    render.policy = replace(render.policy, silent_s=0.5)
    monkeypatch.setattr(render, "join", lambda _timeout: False)  # the other threads may take their time to end
    monkeypatch.setattr(Display, "render", hang)
    assert daemon.stopping.wait(PATIENCE_S)
    assert daemon.failure is not None
    assert "render hangs" in daemon.failure
    assert daemon.status()["stages"]["render"]["state"] == "hung"
    daemon.stop()
    free.set()
    assert Avatar.load(tmp_path / "avatar", load_head(), "cpu").steps > 0


def test_an_avatar_that_cannot_be_saved_goes_on_and_ends_in_an_error(
    start: Callable[[], Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "avatar").write_text("something else is here")
    with pytest.raises(UserError):
        start()
    (tmp_path / "avatar").unlink()
    daemon = start()
    wait_until((tmp_path / "avatar").exists)
    for attempt in range(100):  # a save may be in progress
        with suppress(OSError):
            (tmp_path / "avatar").rename(tmp_path / f"gone {attempt}")
            (tmp_path / "avatar").write_text("something else is here")
            break
    status = wait_for_status(daemon, lambda status: any(line.startswith("avatar: ") for line in status["errors"]))
    assert status["state"] in ("learning", "live")
    daemon.stop()
    assert daemon.failure is not None
    assert "cannot" in daemon.failure or "no avatar" in daemon.failure


def test_learning_rests_without_new_observations_and_rendering_without_viewers(
    start: Callable[[], Daemon], camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telepresence.call.stages.UNSEEN_S", 600.0)
    for name in ("NOVELTY_TIMEOUT_S", "PLATEAU_S"):
        monkeypatch.setattr(f"telepresence.learning.budget.{name}", 0.5)
    daemon = start()
    still: list[CameraFrame] = []

    def stand_still(frame: CameraFrame | None) -> CameraFrame | None:
        if frame is None:
            return None
        still[:] = still or [frame]
        return replace(still[0], t_capture_ns=frame.t_capture_ns)

    camera.fault = stand_still
    status = wait_for_status(daemon, lambda status: status["training"]["state"] == "resting")
    assert status["training"]["reason"] == "there is nothing new to learn"
    camera.fault = None
    steps = status["steps"]
    wait_for_status(daemon, lambda status: status["steps"] > steps + 1)

    assert isinstance(daemon._sinks.server, MediaServer)
    tracked, shown = daemon.telemetry.tracked, daemon.telemetry.shown.total
    end = tracked.total + 5
    wait_for_status(daemon, lambda _: tracked.total >= end)
    assert daemon.telemetry.shown.total == shown
    daemon._sinks.server._hub.subscribe_raw(lambda _: None)
    wait_for_status(daemon, lambda _: daemon.telemetry.shown.total > shown + 2)


def test_a_bug_in_a_receiver_is_logged_once_and_the_receiver_goes_on(
    start: Callable[[], Daemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(POLICIES, "receiver", replace(POLICIES["receiver"], pauses=SOON))
    monkeypatch.setattr("telepresence.runtime.supervision.WELL_S", 0.2)
    message = Fault(monkeypatch, LiveTransfer, "__call__")
    daemon = start()
    address, head = daemon.status()["zmq"], load_head()
    message.error = IndexError("no such expression")
    with ParameterClient(address, head.sha256, head.basis) as client:

        def send(restarts: int) -> Callable[[dict[str, Any]], bool]:
            def sent(status: dict[str, Any]) -> bool:
                client.send(HeadState.neutral(len(head.expression_names)))
                return bool(status["stages"]["zmq"]["restarts"] >= restarts)

            return sent

        status = wait_for_status(daemon, send(6))
        assert status["stages"]["zmq"]["error"] == "IndexError: no such expression"
        assert any(line.startswith("zmq: IndexError: no such expression") for line in status["errors"])
        assert status["driver"] == "tracker"
        shown = daemon.telemetry.shown.total
        wait_for_status(daemon, lambda _: daemon.telemetry.shown.total > shown)
        traces = [record for record in caplog.records if record.exc_info]
        assert [getattr(record, "stage", None) for record in traces] == ["zmq"]

        message.error = None
        wait_for_status(daemon, lambda status: send(0)(status) and status["driver"] == "zmq")
    wait_for_status(daemon, lambda status: status["stages"]["zmq"]["state"] == "running" and not status["errors"])


def test_a_call_goes_on_without_training_that_hangs(
    start: Callable[[], Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telepresence.runtime.supervision.JOIN_S", 0.2)
    daemon = start()
    camera_session = daemon._cameras.current
    assert camera_session is not None
    assert camera_session.learner is not None
    free = threading.Event()
    training = daemon._supervisor._workers["train"]
    training.policy = replace(training.policy, silent_s=0.5)
    monkeypatch.setattr(type(camera_session.learner.trainer), "step", lambda _: free.wait(PATIENCE_S))
    status = wait_for_status(daemon, lambda status: status["training"]["state"] == "failed")
    assert status["stages"]["train"]["state"] == "hung"
    assert "no round was finished" in status["training"]["reason"]
    shown = daemon.telemetry.shown.total
    wait_for_status(daemon, lambda _: daemon.telemetry.shown.total > shown)
    daemon.stop()  # does not wait for the thread that hangs
    assert any("training hangs" in line for line in daemon.telemetry.errors.lines())
    free.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_call_without_network_or_supervision_ends_with_the_avatar_saved(
    start: Callable[[], Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon = start()
    assert isinstance(daemon._sinks.server, MediaServer)
    assert daemon._sinks.server._loop is not None
    daemon._sinks.server._loop.call_soon_threadsafe(daemon._sinks.server._loop.stop)
    daemon.wait()
    assert daemon.failure == "the network thread has ended"
    daemon.stop()
    assert Avatar.load(tmp_path / "avatar", load_head(), "cpu").steps > 0

    daemon = start()
    free = threading.Event()
    watching = daemon._supervisor._workers["supervise"]
    watching.policy = replace(watching.policy, silent_s=0.5)
    monkeypatch.setattr(CameraManager, "update", lambda *_: free.wait(PATIENCE_S))
    daemon.wait()
    assert daemon.failure is not None
    assert "supervise hangs" in daemon.failure
    free.set()


def test_a_camera_whose_clock_goes_back_is_still_tracked(start: Callable[[], Daemon], camera: Camera) -> None:
    daemon = start()
    seen: list[TrackedFrame] = []
    hour = 3600 * 10**9
    camera.fault = lambda frame: replace(frame, t_capture_ns=frame.t_capture_ns - hour) if frame is not None else None
    wait_for_status(daemon, lambda status: status["drops"].get("capture_clock", 0) > 3)
    camera_session = daemon._cameras.current
    assert camera_session is not None
    end = time.monotonic() + PATIENCE_S
    while len(seen) < 3:
        assert time.monotonic() < end
        if (newest := camera_session.tracking.newest) is not None and (not seen or newest is not seen[-1]):
            seen.append(newest)
        time.sleep(0.01)
    times = [frame.t_capture_ns for frame in seen]
    assert times == sorted(set(times))
    assert abs(times[-1] - time.monotonic_ns()) < 10 * 10**9
    assert daemon.status()["state"] in ("learning", "live")


def test_slow_stages_get_the_newest_value_and_no_queue_builds_up(
    start: Callable[[], Daemon], camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telepresence.call.stages.READ_S", 5.0)  # longer than tracking a frame takes on any machine
    daemon = start()
    camera_session = daemon._cameras.current
    assert camera_session is not None
    assert isinstance(daemon._sinks.server, MediaServer)
    daemon._sinks.server._hub.subscribe_raw(lambda _: None)
    missed = 4  # states that arrive while a frame is rendered
    captured: list[int] = []  # capture times at the output of each stage
    tracked: list[int] = []
    behind: dict[str, list[int]] = {
        "track": [],
        "render": [],
    }  # number of newer values than the one that the stage begins with

    def capture(frame: CameraFrame | None) -> CameraFrame | None:
        captured.extend([frame.t_capture_ns] if frame is not None else [])
        return frame

    def begin(stage: str, t_capture_ns: int, there: list[int]) -> bool:
        if t_capture_ns not in there:  # from before, or of a face that is gone
            return False
        behind[stage].append(len(there) - 1 - there.index(t_capture_ns))
        return True

    track, draw = camera_session.tracker.track, daemon._display.render

    def slowly_track(frame: CameraFrame, told: Callable[[TrackedState], None]) -> TrackedFrame:
        begin("track", frame.t_capture_ns, captured)
        daemon.stopping.wait(0.1)  # three frames of the camera
        made = track(frame, told)
        tracked.append(frame.t_capture_ns)
        return made

    def slowly_draw(_display: Display, scene: Any) -> Any:
        if scene.state is not None and begin("render", scene.state.t_capture_ns, tracked):
            enough, end = len(tracked) + missed, time.monotonic() + PATIENCE_S
            while len(tracked) < enough and time.monotonic() < end and not daemon.stopping.is_set():
                time.sleep(0.002)
        return draw(scene)

    camera.fault = capture
    monkeypatch.setattr(camera_session.tracker, "track", slowly_track)
    monkeypatch.setattr(Display, "render", slowly_draw)
    wait_for_status(daemon, lambda _: len(behind["track"]) > 6 and len(behind["render"]) > 2)
    assert max(behind["track"]) == 0, "a frame is read from the camera when the tracker waits for one"
    assert max(behind["render"]) < missed  # a queue would begin with the missed ones

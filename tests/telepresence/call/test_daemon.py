"""The whole daemon in this process, on the synthetic actor, with a field small enough to learn fast."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from insta_runtime.avatar import Avatar
from insta_runtime.errors import UserError
from insta_runtime.head import load_head
from telepresence.call.call_options import CallOptions
from telepresence.call.daemon import Daemon
from telepresence.call.session import AWAY, SessionState
from telepresence.client import ParameterClient
from telepresence.config import Config, load_config
from telepresence.display.display import Display
from telepresence.runtime.failure_policy import POLICIES
from telepresence.runtime.frames import CameraFrame, OutputFrame
from tests.support.small_call import IN_PROCESS_CALL, PATIENCE_S, wait_for_status


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("cpu", IN_PROCESS_CALL, "cpu")


@pytest.fixture
def launch(config: Config) -> Iterator[Callable[..., Daemon]]:
    """Start a daemon that records its output frames."""
    running: list[Daemon] = []

    def start(options: CallOptions, configuration: Config = config) -> Daemon:
        daemon = RecordingDaemon(configuration, options)
        running.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in running:
        daemon.stop()
    assert not {"capture", "track", "render", "train", "supervise", "zmq", "network", "encode"} & {
        thread.name for thread in threading.enumerate()
    }


class RecordingDaemon(Daemon):
    """The daemon, with a record of its output frames."""

    def __init__(self, config: Config, options: CallOptions) -> None:
        super().__init__(config, options)
        self.output: list[OutputFrame] = []
        push_frame = self._sinks.push_frame

        def note(frame: OutputFrame) -> None:
            self.output.append(frame)
            push_frame(frame)

        self._sinks.push_frame = note


def test_a_call_from_the_first_card_to_a_saved_avatar(launch: Callable[..., RecordingDaemon], tmp_path: Path) -> None:
    daemon = launch(CallOptions("synthetic", tmp_path / "avatar"))
    states = [SessionState(daemon.status()["state"])]

    def learned(status: dict[str, Any]) -> bool:
        state = SessionState(status["state"])
        if state not in (states[-1], *AWAY):  # on a busy machine the face counts as lost while no frame is read
            states.append(state)
        better = status["psnr_db"] is not None and status["psnr_db"] > status["mesh_psnr_db"] + 1.0
        return status["steps"] >= 8 and better  # so that a later call displays the avatar

    status = wait_for_status(daemon, learned, 5 * PATIENCE_S)
    order = [SessionState.WAITING, SessionState.CALIBRATING, SessionState.LEARNING, SessionState.LIVE]
    assert [order.index(state) for state in states] == sorted(order.index(state) for state in states)
    assert states[-1] in (SessionState.LEARNING, SessionState.LIVE)
    assert status["driver"] == "tracker"
    assert status["errors"] == []
    assert status["mesh_psnr_db"] > 5.0
    assert json.loads(json.dumps(status, allow_nan=False)) == status

    head = load_head()
    assert status["head"] == {"name": head.name, "sha256": head.sha256, "basis": "arkit52"}
    drive(daemon, status["zmq"], head.sha256)

    daemon.stop()
    assert daemon.output
    assert all(frame.rgb.mean() > 10 for frame in daemon.output), "a black frame was displayed"
    assert all(frame.rgb.shape == (128, 128, 3) for frame in daemon.output)
    steps = Avatar.load(tmp_path / "avatar", head, "cpu").steps
    assert steps >= status["steps"]

    again = launch(
        CallOptions("synthetic", tmp_path / "avatar"), load_config("cpu", (*IN_PROCESS_CALL, "run.freeze=true"), "cpu")
    )
    wait_for_status(again, lambda status: status["avatar_fps"] > 0)
    assert again.status()["steps"] == steps
    assert any(frame.is_avatar for frame in again.output)


def drive(daemon: Daemon, address: str, sha256: str) -> None:
    """A ZeroMQ client drives the face while it sends, a malformed message is reported, and the tracker takes over."""
    with ParameterClient(address, sha256, "arkit52") as client:
        assert client.wait(120)

        def speak(status: dict[str, Any]) -> bool:
            client.send(expression=np.full(52, 0.1, np.float32))
            return bool(status["driver"] == "zmq")

        wait_for_status(daemon, speak)
    push: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    push.connect(address)
    push.send(msgspec.msgpack.encode({"v": 1, "nonsense": True}))
    status = wait_for_status(daemon, lambda status: bool(status["errors"]))
    push.close()
    assert status["errors"][0].startswith("zmq: malformed message")
    assert status["drops"]["zmq_error"] == 1
    wait_for_status(daemon, lambda status: status["driver"] == "tracker")


def test_the_server_answers_while_a_camera_is_missing(launch: Callable[..., RecordingDaemon], models: Path) -> None:
    daemon = launch(CallOptions("browser", models=models))
    assert daemon.address is not None
    with urllib.request.urlopen(f"{daemon.address}healthz", timeout=600) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{daemon.address}status", timeout=600) as answer:
        status = json.load(answer)
    assert status["state"] == "waiting"
    with urllib.request.urlopen(f"{daemon.address}metrics", timeout=600) as answer:
        assert b"telepresence_stage_seconds" in answer.read()


def test_frames_without_a_face_are_reported(
    launch: Callable[..., RecordingDaemon], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telepresence.call.session_controller.NO_FACE_S", 0.5)
    daemon = launch(CallOptions("browser", models=models))
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)

    def look(status: dict[str, Any]) -> bool:
        daemon._browser_camera.put(CameraFrame(0, time.monotonic_ns(), noise))
        return bool(status["errors"])

    status = wait_for_status(daemon, look)
    assert status["state"] == "waiting"
    assert status["errors"] == ["face: no face was found in the frames of browser so far"]
    assert all(frame.rgb.mean() > 10 for frame in daemon.output)


def test_a_browser_camera_that_cannot_be_tracked_is_refused_and_the_call_goes_on(
    launch: Callable[..., RecordingDaemon], tmp_path: Path
) -> None:
    daemon = launch(CallOptions("synthetic", tmp_path / "avatar", models=tmp_path / "nothing here"))
    daemon._cameras.set_browser_camera(True)
    status = wait_for_status(daemon, lambda status: bool(status["errors"]))
    assert "nothing here" in status["errors"][0]
    assert status["source"] == "synthetic"
    daemon._cameras.set_browser_camera(False)
    wait_for_status(daemon, lambda status: not status["errors"])


def test_a_browser_camera_gets_a_new_avatar_and_the_actor_comes_back(
    launch: Callable[..., RecordingDaemon], shared: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    monkeypatch.setattr("telepresence.call.camera_manager.RESUME_S", 0.5)
    daemon = launch(CallOptions("synthetic", tmp_path / "avatar", models=models))
    wait_for_status(daemon, lambda status: status["steps"] > 0)
    home = daemon.status()["avatar"]
    with av.open(str(shared / "clips" / "d9.mp4")) as clip:
        rgb = next(clip.decode(video=0)).to_ndarray(format="rgb24")

    def lend(status: dict[str, Any]) -> bool:
        daemon._browser_camera.put(CameraFrame(0, time.monotonic_ns(), rgb))
        return bool(status["source"] == "browser" and status["steps"] > 0)

    daemon._cameras.set_browser_camera(True)
    guest = wait_for_status(daemon, lend)["avatar"]
    assert guest != home
    daemon._cameras.set_browser_camera(False)
    status = wait_for_status(daemon, lambda status: status["source"] == "synthetic" and Path(guest).exists())
    assert status["steps"] > 0
    assert status["avatar"] == home
    assert Avatar.load(Path(guest), load_head(), "cpu").calibration is not None


def test_the_actor_through_the_real_tracker(
    launch: Callable[..., RecordingDaemon], models: Path, tmp_path: Path
) -> None:
    daemon = launch(CallOptions("synthetic", tmp_path / "avatar", models=models, track=True))
    wait_for_status(daemon, lambda status: status["state"] in ("learning", "live") and status["steps"] > 0)
    assert daemon._cameras.current is not None
    assert daemon._cameras.current.tracker.calibration is not None


def test_a_stage_that_keeps_failing_ends_the_call_with_the_avatar_saved(
    launch: Callable[..., RecordingDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POLICIES, "render", replace(POLICIES["render"], pauses=(0.01, 0.01, 0.01)))
    daemon = launch(CallOptions("synthetic", tmp_path / "avatar"))
    wait_for_status(daemon, lambda status: status["steps"] > 0)

    def broken(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Display, "render", broken)
    assert daemon.stopping.wait(PATIENCE_S)
    daemon.stop()
    assert daemon.failure is not None
    assert "render" in daemon.failure
    assert "out of order" in daemon.failure
    assert Avatar.load(tmp_path / "avatar", load_head(), "cpu").steps > 0


def test_a_file_that_is_no_avatar_is_refused(launch: Callable[..., RecordingDaemon], tmp_path: Path) -> None:
    (tmp_path / "avatar").write_text("hello")
    with pytest.raises(UserError, match="no avatar"):
        launch(CallOptions("synthetic", tmp_path / "avatar"))
    (tmp_path / "avatar.safetensors").write_text("hello")
    with pytest.raises(UserError, match="not an avatar"):
        launch(CallOptions("synthetic", tmp_path / "avatar.safetensors"))

"""A tracked folder as a camera: in a loop, at its own rate, with its tracked states."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from insta_runtime.errors import UserError
from insta_runtime.head import load_head
from insta_runtime.tracked import read_take, write_take
from insta_runtime.types import Camera, HeadState
from telepresence.call.tracker_factory import make_tracker
from telepresence.measure.offline.video_tracking import write_ground_truth_folder
from telepresence.runtime.frames import CameraFrame, GroundTruth
from telepresence.sources import GroundTruthSource, open_source
from telepresence.sources.playback_clock import PlaybackClock
from telepresence.sources.tracked_folder import TrackedSource
from tests.support.fake_time import FakeTime

SIZE, COUNT, FPS = 32, 4, 40.0
BODY = np.full((SIZE, SIZE), 200, np.uint8)
ALPHA = np.full((SIZE, SIZE), 120, np.uint8)


def _frames() -> Iterator[CameraFrame]:
    for number in range(COUNT):
        rgb = np.full((SIZE, SIZE, 3), 40 * number, np.uint8)
        state = HeadState.neutral(52)
        state.translation[0] = 0.01 * number
        truth = GroundTruth(state, ALPHA, Camera(40.0, 40.0, 16.0, 16.0, SIZE, SIZE), BODY)
        yield CameraFrame(number, round(number * 1e9 / FPS), rgb, truth)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tracked"
    head = load_head()
    shape = np.linspace(-1.0, 1.0, len(head.shape_dirs), dtype=np.float32)
    write_ground_truth_folder(_frames(), path, head=head, shape=shape, fps=FPS, size=SIZE, source="test")
    take = read_take(path)
    write_take(path / "take.npz", replace(take, valid=np.arange(COUNT) != 2))  # no face in frame 2
    return path


def test_frames_repeat_in_a_loop_with_increasing_times(folder: Path) -> None:
    source = open_source(f"tracked:{folder}")
    assert (source.name, source.fps) == ("tracked", FPS)
    began = time.monotonic_ns()
    frames = [frame for _ in range(3 * COUNT) if (frame := source.read(1.0)) is not None]
    source.close()
    numbers = [frame.frame_id for frame in frames]
    times = [frame.t_capture_ns for frame in frames]
    assert numbers == sorted(set(numbers)), "each frame once"
    assert numbers[-1] >= 3 * COUNT - 1
    assert times == sorted(set(times))
    assert began <= times[0]
    assert times[-1] <= time.monotonic_ns()
    for frame in frames:
        index = frame.frame_id % COUNT
        assert frame.t_capture_ns - times[0] == pytest.approx((frame.frame_id - numbers[0]) * 1e9 / FPS, abs=2)
        assert abs(float(frame.rgb.mean()) - 40 * index) < 3
        if index == 2:
            assert frame.truth is None, "no face was tracked here"
            continue
        assert frame.truth is not None
        assert frame.truth.state.translation[0] == pytest.approx(0.01 * index)
        assert frame.truth.state.t_capture_ns == frame.t_capture_ns
        assert (frame.truth.alpha == ALPHA).all()
        assert frame.truth.body is not None
        assert (frame.truth.body == BODY).all()


def test_its_frames_need_no_face_tracking(folder: Path) -> None:
    source, head = TrackedSource(folder), load_head()
    assert isinstance(source, GroundTruthSource)
    tracker = make_tracker(head, source.identity, None, "center", 2 * SIZE, None)
    assert (tracker.shape == source.identity.shape).all()
    seen = tracker.track(source.frame(1, 5))
    assert seen.observation is not None
    assert seen.observation.rgb.shape == (2 * SIZE, 2 * SIZE, 3)
    assert seen.observation.camera.width == 2 * SIZE
    assert tracker.track(source.frame(2, 6)).observation is None
    assert tracker.state == "lost"


def test_only_its_first_frames_can_be_played(folder: Path) -> None:
    source = TrackedSource(folder, 3)
    assert source.seconds == 3 / FPS
    assert (source.frame(4, 0).rgb == source.frame(1, 0).rgb).all()


def test_a_late_reader_skips_frames_and_keeps_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime()
    monkeypatch.setattr("telepresence.sources.playback_clock.time", clock)
    pace = PlaybackClock(50.0)
    first = pace.wait(1.0)
    clock.sleep(0.1)
    later = pace.wait(1.0)
    assert first is not None
    assert later is not None
    assert later[0] - first[0] >= 5
    assert later[1] - first[1] == pytest.approx((later[0] - first[0]) * 20_000_000, abs=2)
    slow = PlaybackClock(0.5)
    assert slow.wait(0.0) is not None
    assert slow.wait(0.01) is None


def test_a_damaged_frame_gives_a_one_line_error(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "frames" / "000001.jpg").write_bytes(b"no picture")
    source = TrackedSource(copy)
    with pytest.raises(UserError, match=r"000001\.jpg"):
        source.frame(1, 0)
    with pytest.raises(UserError, match="not a folder"):
        open_source(f"tracked:{tmp_path / 'nothing'}")


@pytest.mark.parametrize("name", ["2024-05-01T12:30:00", "file:x", "-x", "%d", "a b 脸"])
def test_a_folder_is_opened_whatever_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, name)
    source = open_source(f"tracked:{name}")
    assert source.name == name
    assert source.read(5.0) is not None
    source.close()

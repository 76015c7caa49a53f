"""Recorder: frames, audio and head states are in sync, and survive a kill or a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

import insta_runtime.head  # noqa: F401 - importing it takes seconds, which must not delay the first frame
from insta_runtime.errors import UserError
from insta_runtime.tracked import read_take
from insta_runtime.types import Camera, HeadState
from telepresence.outputs import recorder as recorder_module
from telepresence.outputs.recorder import Recorder
from telepresence.runtime.audio import RATE, AudioBus, AudioChunk
from telepresence.runtime.frames import OutputFrame, RenderInputs

SIDE, FPS, MS = 96, 25, 1_000_000
ALICE, BOB = np.full(4, 0.5, np.float32), np.full(4, -0.5, np.float32)
SHA = "ab" * 32


def lit(at_ms: int) -> bool:
    """Whether the test signal flashes and beeps: for 80 ms, every second from 0.4 s on."""
    return 400 <= at_ms % 1000 < 480


def picture(at_ms: int) -> np.ndarray:
    rgb = np.full((SIDE, SIDE, 3), (200, 60, 40), np.uint8)
    if lit(at_ms):
        rgb[:] = 250
    return rgb


def shown(at_ms: int, origin_ns: int, shape: np.ndarray | None = ALICE) -> OutputFrame:
    state = HeadState.neutral(5).at(1)
    state.expression[0] = at_ms / 1000
    drawn = None
    if shape is not None:
        camera = Camera(50.0, 50.0, SIDE / 4, SIDE / 4, SIDE // 2, SIDE // 2)
        drawn = RenderInputs(state, camera, 1, 0.0, shape)
    return OutputFrame(at_ms, origin_ns + at_ms * MS, picture(at_ms), True, drawn)


def beep(at_ms: int, origin_ns: int) -> AudioChunk:
    t = at_ms / 1000 + np.arange(RATE // 50) / RATE
    on = (t % 1.0 >= 0.4) & (t % 1.0 < 0.48)
    wave = np.where(on, 12000 * np.sin(2 * np.pi * 1000 * t), 0.0).astype(np.int16)
    return AudioChunk(origin_ns + at_ms * MS, np.stack([wave, wave], 1))


def show(recorder: Recorder, frame: OutputFrame) -> None:
    """Push one frame and wait until the recorder has taken it, so that a busy machine drops none."""
    recorder.push_frame(frame)
    while recorder._frames._fresh:
        time.sleep(0.001)


def record(recorder: Recorder, bus: AudioBus, seconds: float) -> None:
    """Push ``seconds`` of a call, faster than real time; frames arrive later than their audio."""
    origin_ns = time.monotonic_ns() - round(1e9 * seconds)
    for at_ms in range(0, round(1000 * seconds), 20):
        bus.play_source(beep(at_ms, origin_ns))
        if at_ms >= 80 and at_ms % 40 == 0:
            show(recorder, shown(at_ms - 80, origin_ns))


def watch(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Times (N,) s and mean colours (N, 3) of the frames; times (M,) and left samples (M,) of the audio."""
    times, colours, heard, samples = [], [], [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(frame.time)
            colours.append(frame.to_ndarray(format="rgb24").reshape(-1, 3).mean(0))
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            block = frame.to_ndarray()[0]
            heard.append(frame.time + np.arange(len(block)) / frame.sample_rate)
            samples.append(block)
    return np.array(times), np.array(colours), np.concatenate(heard), np.concatenate(samples)


def begins(times: np.ndarray, on: np.ndarray) -> np.ndarray:
    """Times at which the signal begins after a pause of 0.3 s."""
    at = times[on]
    return at[np.diff(at, prepend=-10.0) > 0.3]


@pytest.fixture(autouse=True)
def no_repeated_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the recorder from repeating a frame where a busy machine delays the next one."""
    monkeypatch.setattr(recorder_module, "STILL_S", 600.0)


@pytest.fixture
def bus() -> AudioBus:
    return AudioBus()


def make(path: Path, bus: AudioBus) -> tuple[Recorder, list[str]]:
    failures: list[str] = []
    return Recorder(path, FPS, SHA, bus, failures.append), failures


def test_audio_frame_and_state_of_one_moment_have_the_same_time(tmp_path: Path, bus: AudioBus) -> None:
    recorder, failures = make(tmp_path / "call.mp4", bus)
    recorder.start()
    record(recorder, bus, 3.2)
    recorder.stop()
    recorder.stop()
    assert failures == []
    times, colours, heard, samples = watch(tmp_path / "call.mp4")
    assert len(times) > 70
    flashes, beeps = begins(times, colours[:, 2] > 150), begins(heard, np.abs(samples) > 0.1)
    assert len(flashes) == len(beeps) == 3
    np.testing.assert_allclose(flashes - beeps, 0.0, atol=0.02)
    np.testing.assert_allclose(np.diff(flashes), 1.0, atol=0.01)
    np.testing.assert_allclose(colours[colours[:, 2] < 150].mean(0), (200, 60, 40), atol=6)

    take = read_take(tmp_path / "call.npz")
    assert len(take.states) == len(times)
    assert take.valid.all()
    np.testing.assert_allclose([s.t_capture_ns * 1e-9 for s in take.states], times - times[0], atol=2e-3)
    np.testing.assert_allclose([s.expression[0] for s in take.states], times - times[0], atol=2e-3)
    assert (take.head_sha256, take.fps, take.camera.width, take.camera.fx) == (SHA, FPS, SIDE, 100.0)
    np.testing.assert_array_equal(take.shape, ALICE)


def test_without_audio_the_video_is_silent_and_no_shorter(tmp_path: Path, bus: AudioBus) -> None:
    recorder, _ = make(tmp_path / "call.mp4", bus)
    recorder.start()
    origin_ns = time.monotonic_ns()
    for at_ms in range(0, 2000, 40):
        show(recorder, shown(at_ms, origin_ns))
    recorder.stop()
    times, _, heard, samples = watch(tmp_path / "call.mp4")
    assert heard[-1] == pytest.approx(times[-1], abs=0.1)
    assert not samples.any()


def test_the_next_subject_gets_a_separate_take_and_a_card_has_no_state(tmp_path: Path, bus: AudioBus) -> None:
    recorder, _ = make(tmp_path / "call.mp4", bus)
    recorder.start()
    origin_ns = time.monotonic_ns()
    for number, shape in enumerate((None, ALICE, ALICE, None, BOB, BOB, BOB)):
        show(recorder, shown(40 * number, origin_ns, shape=shape))
    recorder.stop()
    alice, bob = read_take(tmp_path / "call.npz"), read_take(tmp_path / "call-2.npz")
    assert alice.valid.tolist() == [True, True, False]
    assert bob.valid.tolist() == [True, True, True]
    np.testing.assert_array_equal(bob.shape, BOB)
    assert [round(s.t_capture_ns / 1e6) for s in bob.states] == [160, 200, 240]


CALL = """
import sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_recorder import make, record
from telepresence.runtime.audio import AudioBus
import telepresence.outputs.recorder as module
module.TAKE_S = 0.2
module.STILL_S = 600.0
bus = AudioBus()
recorder, _ = make(Path({path!r}), bus)
recorder.start()
print("begun", flush=True)
record(recorder, bus, 60.0)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_the_recording_before_a_kill_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "call.mp4"
    program = CALL.format(folder=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    take = path.with_suffix(".npz")
    while not (path.stat().st_size > 24_000 and take.exists() and len(read_take(take).states) > FPS):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    process.stdout.close()
    times, colours, heard, samples = watch(path)
    assert len(times) >= FPS
    assert heard[-1] > times[-1] - 1.0
    flashes, beeps = begins(times, colours[:, 2] > 150), begins(heard, np.abs(samples) > 0.1)
    assert abs(flashes[0] - beeps[0]) < 0.02
    assert len(read_take(take).states) > FPS


def test_a_file_that_cannot_be_written_is_an_error_before_the_call(tmp_path: Path, bus: AudioBus) -> None:
    there = tmp_path / "there.mp4"
    there.write_bytes(b"precious")
    (tmp_path / "take.npz").write_bytes(b"precious")
    for path in (there, tmp_path / "take.mp4", tmp_path / "call.avi", there / "call.mp4"):
        with pytest.raises((UserError, OSError)) as error:
            make(path, bus)[0].start()
        assert isinstance(error.value, UserError)
        assert "\n" not in str(error.value)
    assert there.read_bytes() == b"precious"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk here")
def test_a_full_disk_ends_the_recording_and_not_the_call(tmp_path: Path, bus: AudioBus) -> None:
    recorder, failures = make(tmp_path / "call.mp4", bus)
    recorder.start()
    (tmp_path / "call.mp4").unlink()
    (tmp_path / "call.mp4").symlink_to("/dev/full")
    origin_ns, at_ms = time.monotonic_ns(), 0
    while recorder.open:
        assert at_ms < 1_000_000
        recorder.push_frame(shown(at_ms, origin_ns))
        at_ms += 40
        time.sleep(0.002)
    recorder.push_frame(shown(at_ms, origin_ns))
    recorder.stop()
    (failure,) = failures
    assert "no space left" in failure
    assert "\n" not in failure


def test_a_bug_ends_the_recording_with_one_line_and_its_traceback_in_the_log(
    tmp_path: Path, bus: AudioBus, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, failures = make(tmp_path / "call.mp4", bus)
    recorder.start()
    origin_ns = time.monotonic_ns()
    show(recorder, shown(0, origin_ns))
    recorder.push_frame(replace(shown(40, origin_ns), rgb=np.zeros(3, np.uint8)))
    end = time.monotonic() + 120
    while recorder.open:
        assert time.monotonic() < end
        time.sleep(0.01)
    recorder.stop()
    (failure,) = failures
    assert failure.startswith(f"the recording {tmp_path / 'call.mp4'} has ended: ")
    assert "\n" not in failure
    assert caplog.text.count("Traceback") == 1


@pytest.mark.parametrize(
    "name",
    [
        "2024-05-01T12:30:00.mp4",
        "pipe:1.mp4",
        "-x.mp4",
        "%d.mp4",
        "тест 脸 'a' \"b\".mp4",
        os.fsdecode(b"latin\xe9.mp4"),
    ],
)
def test_a_relative_name_is_that_of_a_file(
    tmp_path: Path, bus: AudioBus, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    recorder, failures = make(Path(name), bus)
    recorder.start()
    record(recorder, bus, 0.6)
    recorder.stop()
    assert failures == []
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([name, name.removesuffix(".mp4") + ".npz"])
    with (tmp_path / name).open("rb") as file, av.open(file) as container:
        assert sum(1 for _ in container.decode(video=0)) > 5

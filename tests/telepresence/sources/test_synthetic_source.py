"""The actor as a source: truth in every frame, pace, and nothing imported that it does not need."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from telepresence.actor.actor import Actor
from telepresence.actor.performance import PERIOD
from telepresence.sources.synthetic import SyntheticSource, actor_take


@pytest.fixture(scope="module")
def source():
    return SyntheticSource(96, drawn=64, fps=12.5)


def test_live_frames_carry_their_truth_and_keep_the_clock(source):
    frames = []
    while len(frames) < 4:
        frame = source.read(2.0)
        assert frame is not None
        frames.append(frame)
    for frame in frames:
        assert frame.rgb.shape == (96, 96, 3)
        assert frame.truth is not None
        assert frame.truth.alpha.shape == (96, 96)
        assert frame.truth.camera == Actor.camera(96)
        assert frame.truth.state.t_capture_ns == frame.t_capture_ns
        assert frame.t_capture_ns <= time.monotonic_ns()
    assert np.all(np.diff([f.frame_id for f in frames]) > 0)
    assert np.all(np.diff([f.t_capture_ns for f in frames]) > 0)


def test_a_picture_that_is_not_due_is_waited_for_no_longer_than_asked(source):
    assert source.read(2.0) is not None
    begin = time.monotonic()
    for _ in range(3):
        source.read(0.0)
    assert time.monotonic() - begin < 1.0


def test_the_performance_comes_round_again(source):
    again = round(PERIOD * source.fps)
    first, second = source._frame(3), source._frame(3 + again)
    np.testing.assert_array_equal(first.rgb, second.rgb)
    np.testing.assert_array_equal(first.truth.state.expression, second.truth.state.expression)
    assert second.t_capture_ns - first.t_capture_ns == pytest.approx(PERIOD * 1e9, abs=1e3)


def test_a_take_is_exact_and_not_paced(source):
    frames = list(actor_take(3, fps=25.0, size=64, actor=source.actor))
    assert [f.t_capture_ns for f in frames] == [0, 40_000_000, 80_000_000]
    for frame in frames:
        rgb, alpha = source.actor.render(frame.truth.state, frame.truth.camera)
        np.testing.assert_array_equal(frame.rgb, rgb)
        np.testing.assert_array_equal(frame.truth.alpha, alpha)


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mediapipe", "cv2", "av", "aiortc", "aiohttp", "zmq", "pygame"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import hashlib
from telepresence.sources import open_source
from telepresence.sources.synthetic import actor_take
source = open_source("synthetic")
assert source.read(5.0) is not None
frame = next(actor_take(1, size=64, actor=source.actor))
print(hashlib.sha256(frame.rgb.tobytes() + frame.truth.alpha.tobytes()).hexdigest())
"""


def test_the_synthetic_path_needs_no_camera_and_no_tracker_and_repeats_in_another_process(source):
    import hashlib

    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    frame = next(actor_take(1, size=64, actor=source.actor))
    assert done.stdout.split() == [hashlib.sha256(frame.rgb.tobytes() + frame.truth.alpha.tobytes()).hexdigest()]

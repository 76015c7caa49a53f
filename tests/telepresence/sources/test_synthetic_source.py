"""The actor as a source: ground truth in every frame, pace, and few imports."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from telepresence.actor.actor import Actor
from telepresence.actor.performance import PERIOD
from telepresence.sources.synthetic import SyntheticSource, actor_clip
from tests.support.fake_time import FakeTime


@pytest.fixture(scope="module")
def source():
    return SyntheticSource(96, drawn=64, fps=12.5)


def test_live_frames_carry_their_ground_truth_and_increasing_times(source):
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


def test_read_waits_no_longer_than_its_timeout(source, monkeypatch):
    clock = FakeTime(time.monotonic())
    monkeypatch.setattr("telepresence.sources.synthetic.time", clock)
    for _ in range(2):  # the second frame is returned exactly when it is due
        assert source.read(2.0) is not None
    begin = clock.monotonic()
    for _ in range(3):
        assert source.read(0.01) is None
    assert clock.monotonic() - begin == pytest.approx(0.03, abs=1e-6)


def test_the_performance_repeats_after_its_period(source):
    again = round(PERIOD * source.fps)
    first, second = source._frame(3), source._frame(3 + again)
    np.testing.assert_array_equal(first.rgb, second.rgb)
    np.testing.assert_array_equal(first.truth.state.expression, second.truth.state.expression)
    assert second.t_capture_ns - first.t_capture_ns == pytest.approx(PERIOD * 1e9, abs=1e3)


def test_a_clip_is_exact_and_not_paced(source):
    frames = list(actor_clip(3, fps=25.0, size=64, actor=source.actor))
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
from telepresence.sources.synthetic import actor_clip
source = open_source("synthetic")
assert source.read(5.0) is not None
frame = next(actor_clip(1, size=64, actor=source.actor))
print(hashlib.sha256(frame.rgb.tobytes() + frame.truth.alpha.tobytes()).hexdigest())
"""


def test_the_synthetic_source_needs_no_media_libraries_and_is_reproducible(source):
    import hashlib

    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    frame = next(actor_clip(1, size=64, actor=source.actor))
    assert done.stdout.split() == [hashlib.sha256(frame.rgb.tobytes() + frame.truth.alpha.tobytes()).hexdigest()]

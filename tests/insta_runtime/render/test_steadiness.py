"""Rendered frames are steady: tracking noise in pose and distance causes no flicker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.backends import choose_backend, make_renderer, make_trainer
from insta_runtime.native.renderer import NativeRenderer
from insta_runtime.types import Float32, HeadState
from tests.support.small_person import CPU, SMALL, camera, open_head, paint, performance, photograph, pose, small_model

STATE, VIEW = pose(open_head(), jaw=0.1, yaw=0.1), camera(64)
NOISE = 2.0 / 255.0
"""Typical frame-to-frame noise of a webcam's pixels."""


@pytest.fixture(scope="module")
def renderer() -> NativeRenderer:
    config = replace(SMALL, occupancy=replace(SMALL.occupancy, interval=4))
    model = small_model(config=config)
    backend = choose_backend("auto", model)
    if backend.kind != "host":
        pytest.skip("needs a C++ compiler")
    trainer = make_trainer(model, backend)
    for observation in photograph(open_head(), performance(open_head(), 12), 64, paint(open_head())):
        trainer.add(observation)
        trainer.take_in()
    for _ in range(150):
        trainer.step()
    shown = make_renderer(model, backend)
    shown.load(trainer.snapshot())
    assert isinstance(shown, NativeRenderer)
    assert model.device == CPU
    return shown


def change(renderer: NativeRenderer, state: HeadState) -> Float32:
    """Difference of each pixel that is opaque in both frames from the frame of STATE."""
    before, after = (renderer.render(s, VIEW).rgba for s in (STATE, state))
    solid = (before[..., 3] > 0.95) & (after[..., 3] > 0.95)
    assert solid.sum() > 300
    return np.abs(before - after)[solid]


def moved(x: float = 0.0, z: float = 0.0) -> HeadState:
    return replace(STATE, translation=STATE.translation + np.array([x, 0.0, z], np.float32))


def test_the_same_state_gives_the_same_frame(renderer: NativeRenderer) -> None:
    assert not change(renderer, STATE).any()
    renderer.render(moved(x=0.05), VIEW)
    assert not change(renderer, replace(STATE, t_capture_ns=99)).any()


def test_tracking_noise_changes_frames_less_than_camera_noise(renderer: NativeRenderer) -> None:
    pixel = STATE.translation[2] / VIEW.fx
    assert change(renderer, moved(x=0.1 * pixel)).mean() < NOISE


@pytest.mark.parametrize("nearer", [0.0015, 0.003])
def test_noise_in_the_distance_of_the_head_does_not_flicker(renderer: NativeRenderer, nearer: float) -> None:
    """Up to half a step: samples are anchored in head space, so they stay in place."""
    assert change(renderer, moved(z=-nearer)).mean() < 0.5 * NOISE

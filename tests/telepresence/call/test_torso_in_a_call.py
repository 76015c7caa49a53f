"""Torso of a call: learned beside the head, displayed, saved, and replaced when the clothes have changed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from insta_runtime.avatar import Avatar
from insta_runtime.config import TorsoConfig
from insta_runtime.torso.layer import ROOM_SIDE, TorsoLayer
from insta_runtime.torso.motion import INPUTS, MotionModel
from telepresence.display.backgrounds import Backgrounds
from telepresence.display.display import Display, Scene
from telepresence.learning.learner import Learner
from tests.support.clothed_person import CAMERA, head_at, observe, performance, shoulders_of
from tests.support.small_person import CPU, SMALL, neutral_shape, open_head

CONFIG = replace(SMALL, torso=TorsoConfig(size=64))


def new_avatar() -> Avatar:
    head = open_head()
    return Avatar.create(head, neutral_shape(head), CAMERA, CONFIG, CPU)


def run_until_there_is_a_torso(learner: Learner, old: TorsoLayer | None = None) -> None:
    """Pass the performance to the learner until there is a torso."""
    for observation in performance():
        learner.add_observation(observation, observation.t_capture_ns / 1e9)
        end = time.monotonic() + 0.25
        while time.monotonic() < end and learner.torso is old:
            learner.run_once()
        if learner.torso is not old:
            return


def test_the_torso_is_learned_displayed_and_saved(tmp_path: Path) -> None:
    learner = Learner(new_avatar(), tmp_path / "me", freeze=False, backend="torch")
    assert learner.torso is None
    run_until_there_is_a_torso(learner)
    assert learner.torso is not None
    assert learner.torso.is_visible
    assert learner.save()
    again = Avatar.load(tmp_path / "me", open_head(), CPU).part(TorsoLayer)
    assert again is not None
    assert again.rgba.shape == (4, 64, 64)

    seen = observe(0, head_at(0), shoulders_of(head_at(0)))
    pictures = {}
    for word in ("torso", "calm"):
        display = Display(64, 1000.0, Backgrounds(word))
        shown = display.render(Scene(seen.state, seen.camera, learner, True, 0.0, None, "", ""))
        assert shown is not None
        assert shown.is_avatar
        pictures[word] = shown.rgb.astype(int)
    apart = np.abs(pictures["torso"] - pictures["calm"]).max(-1)
    assert np.median(apart[-6:], axis=0).min() > 20  # shoulders from side to side
    assert apart[:10].max() <= 2
    shirt = np.asarray(seen.rgb[-4:].reshape(-1, 3).mean(0), int)
    assert np.abs(pictures["torso"][-2:].reshape(-1, 3).mean(0) - shirt).max() < 40


def test_another_background_is_rendered_at_once(tmp_path: Path) -> None:
    learner = Learner(new_avatar(), tmp_path / "me", freeze=True, backend="torch")
    seen = observe(0, head_at(0), shoulders_of(head_at(0)))
    backgrounds = Backgrounds("calm")
    display = Display(64, 1000.0, backgrounds)
    scene = Scene(seen.state, seen.camera, learner, True, 0.0, None, "", "")
    assert display.render(scene) is not None
    assert display.render(scene) is None
    backgrounds.choose("#ff0000")
    again = display.render(scene)
    assert again is not None
    assert again.rgb[0, 0].tolist() == [255, 0, 0]


def test_a_frozen_avatar_keeps_the_torso_it_came_with(tmp_path: Path) -> None:
    avatar = new_avatar()
    still = MotionModel(np.zeros((INPUTS + 1, 4)), np.zeros(INPUTS), np.ones(INPUTS))
    old = TorsoLayer(torch.full((4, 64, 64), 0.5), torch.zeros(3, ROOM_SIDE, ROOM_SIDE), still)
    avatar.attach(old)
    learner = Learner(avatar, tmp_path / "me", freeze=True, backend="torch")
    for observation in performance(20):
        learner.add_observation(observation, observation.t_capture_ns / 1e9)
        learner.run_once()
    assert learner.torso is old

"""`render` with takes: those of another person are mapped to the avatar's person; the camera may orbit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from insta_runtime.avatar import Avatar
from insta_runtime.config import OccupancyConfig
from insta_runtime.tracked import write_take
from insta_runtime.types import Float32, HeadState, Take
from telepresence.cli import run_command
from telepresence.display.orbit import pitch, pitch_turn, turned, yaw, yaw_turn
from telepresence.measure.offline.rendering import map_to_avatar
from tests.support.small_person import CPU, SMALL, camera, neutral_shape, open_head, performance, pose

JAW = open_head().expression_names.index("jawOpen")


def learned(states: list[HeadState]) -> Avatar:
    config = replace(SMALL, occupancy=OccupancyConfig(resolution=16))
    avatar = Avatar.create(open_head(), neutral_shape(open_head()), camera(48), config, CPU)
    for state in states:
        avatar.model.code.observe(state)
    return avatar


def recorded(states: list[HeadState], shape: Float32, path: Path) -> Path:
    valid = np.ones(len(states), np.bool_)
    take = Take(tuple(states), valid, shape, camera(96), (0.0, 0.0, 96.0), open_head().sha256, 25.0)
    write_take(path, take)
    return path


def test_states_of_another_person_are_moved_to_where_the_avatar_was_learned() -> None:
    avatar = learned([pose(open_head(), jaw=0.4 * max(0.0, math.sin(i)), yaw=0.2) for i in range(80)])
    other = [
        replace(pose(open_head(), jaw=0.1 + 0.8 * max(0.0, math.sin(i)), yaw=-0.4), translation=np.float32([0.2, 0, 1]))
        for i in range(80)
    ]
    shown = map_to_avatar(other, avatar)
    jaws = np.array([state.expression[JAW] for state in shown])
    assert jaws.min() == pytest.approx(0.0, abs=0.03)
    assert jaws.max() == pytest.approx(0.4, abs=0.05)
    assert yaw(shown[7]) == pytest.approx(yaw(pose(open_head(), yaw=0.2)), abs=1e-3)
    np.testing.assert_allclose(shown[7].translation, [0.0, 0.02, 0.6], atol=1e-4)


def test_an_avatar_without_learned_states_still_centres_the_head() -> None:
    shown = map_to_avatar(performance(open_head(), 30), learned([]))
    assert np.mean([yaw(state) for state in shown]) == pytest.approx(0.0, abs=0.05)
    assert shown[0].translation[2] > 0.3


def test_takes_of_the_subject_are_unchanged_and_others_only_with_raw(tmp_path: Path) -> None:
    states = [pose(open_head(), jaw=0.5 * (i % 2), yaw=0.3) for i in range(3)]
    learned([pose(open_head())] * 3).save(tmp_path / "me")
    other = neutral_shape(open_head()) + 1.0
    own = recorded(states, neutral_shape(open_head()), tmp_path / "own.npz")
    foreign = recorded(states, other, tmp_path / "foreign.npz")

    def picture(take: Path, *options: str) -> Float32:
        out = tmp_path / f"{take.stem}{len(options)}"
        asked = ["render", str(tmp_path / "me"), "--driver", str(take), "--frames", str(out), "--size=48"]
        assert run_command([*asked, "--device=cpu", *options]) == 0
        return np.asarray(Image.open(out / "000000.png")).astype(np.float32)

    as_it_is = picture(own)
    assert as_it_is.min() < 200
    np.testing.assert_array_equal(picture(foreign, "--raw"), as_it_is)
    assert np.abs(picture(foreign) - as_it_is).mean() > 1.0
    assert np.abs(picture(own, "--orbit=30", "--tilt=10") - as_it_is).mean() < 1.0, "an orbit begins where it is"


def test_turns_add_to_yaw_and_pitch() -> None:
    state = pose(open_head())
    assert yaw(turned(state, yaw_turn(0.3))) == pytest.approx(0.3, abs=1e-5)
    assert pitch(turned(state, pitch_turn(0.2))) == pytest.approx(0.2, abs=1e-5)

"""Which observations a learner accepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from insta_runtime.avatar import Avatar
from telepresence.learning.learner import (
    ACCEPTED_INTERVAL_S,
    FIRST_COLOUR_FRAMES,
    MAX_INTERVAL_S,
    STEPS_PER_OBSERVATION,
    Learner,
)
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, paint, performance, photograph

CONFIG = replace(SMALL, learn=replace(SMALL.learn, rays=256, size=32))


def test_observations_are_accepted_no_faster_than_training_uses_them(tmp_path: Path) -> None:
    avatar = Avatar.create(open_head(), neutral_shape(open_head()), camera(32), CONFIG, "cpu")
    learner = Learner(avatar, tmp_path, freeze=False, backend="torch")
    pictures = photograph(open_head(), performance(open_head(), 4), 32, paint(open_head()))
    moments = 0

    def offer(count: int) -> int:
        """Number of accepted frames of ``count``, `ACCEPTED_INTERVAL_S` apart."""
        nonlocal moments
        before = learner.frame_filter.accepted
        for _ in range(count):
            moments += 1
            now = moments * ACCEPTED_INTERVAL_S * 1.01
            seen = pictures[moments % len(pictures)]
            learner.add_observation(replace(seen, state=seen.state.at(round(now * 1e9))), now)
        return learner.frame_filter.accepted - before

    assert offer(FIRST_COLOUR_FRAMES) == FIRST_COLOUR_FRAMES, "the first frames are all accepted"
    assert offer(30) in (2, 3, 4), f"while training stands still, one is accepted every {MAX_INTERVAL_S} s"
    learner.trainer.steps += STEPS_PER_OBSERVATION
    assert offer(1) == 1
    assert offer(1) == 0

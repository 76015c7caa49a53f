"""What a learner takes of what it is offered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from insta_runtime.avatar import Avatar
from telepresence.learning.learner import COLOUR_FIRST, OFFER_S, PATIENT_S, STEPS_A_PICTURE, Learner
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, paint, performance, photograph

CONFIG = replace(SMALL, learn=replace(SMALL.learn, rays=256, size=32))


def test_pictures_come_no_faster_than_they_are_learned_from(tmp_path: Path) -> None:
    avatar = Avatar.create(open_head(), neutral_shape(open_head()), camera(32), CONFIG, "cpu")
    learner = Learner(avatar, tmp_path, freeze=False, backend="torch")
    pictures = photograph(open_head(), performance(open_head(), 4), 32, paint(open_head()))
    moments = 0

    def offer(count: int) -> int:
        """How many of ``count`` pictures are taken, `OFFER_S` apart."""
        nonlocal moments
        before = learner.frame_filter.taken
        for _ in range(count):
            moments += 1
            now = moments * OFFER_S * 1.01
            seen = pictures[moments % len(pictures)]
            learner.add_observation(replace(seen, state=seen.state.at(round(now * 1e9))), now)
        return learner.frame_filter.taken - before

    assert offer(COLOUR_FIRST) == COLOUR_FIRST, "at first all"
    assert offer(30) in (2, 3, 4), f"a training that stands still gets one in {PATIENT_S} s"
    learner.trainer.steps += STEPS_A_PICTURE
    assert offer(1) == 1
    assert offer(1) == 0

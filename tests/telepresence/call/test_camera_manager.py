"""Two people in turn before one camera, with their learners: pictures of nobody get into another's avatar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from insta_runtime.avatar import is_stored
from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.native.replay import DeviceReplay
from insta_runtime.types import Camera, Float32, HeadState
from telepresence.call.camera_manager import Options, People
from telepresence.call.subjects import Sitter
from telepresence.config import load_config
from telepresence.learning.learner import Learner
from telepresence.runtime.frames import CameraFrame, Pose, Truth
from telepresence.runtime.mailbox import Mailbox
from telepresence.sources import Identity
from tests.support.small_avatar import SMALL_AVATAR

SIDE = 64
FPS = 10.0
TINY = (
    "run.size=64",
    "avatar.learn.size=32",
    *SMALL_AVATAR,
)


class Chair:
    """A camera whose pictures know who sits before it; each person is of one grey."""

    name, fps = "chair", FPS

    def __init__(self, head: HeadModel, shapes: list[Float32]) -> None:
        self.identity = Identity(head.sha256, shapes[0])
        self._shapes, self._state = shapes, HeadState.neutral(len(head.expression_names))
        self._number = 1000  # none of a painted picture
        self.who: dict[int, int | None] = {}
        disc = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2)) < 22
        self._matte = np.where(disc, 255, 0).astype(np.uint8)

    def frame(self, who: int | None) -> CameraFrame:
        self._number += 1
        self.who[self._number] = who
        grey = np.full((SIDE, SIDE, 3), 40 if who is None else 90 + 80 * who, np.uint8)
        grey += np.random.default_rng(self._number).integers(0, 30, grey.shape, np.uint8)  # pictures differ
        truth = None
        if who is not None:
            camera = Camera(1.2 * SIDE, 1.2 * SIDE, SIDE / 2, SIDE / 2, SIDE, SIDE)
            truth = Truth(self._state, self._matte, camera, shape=self._shapes[who])
        return CameraFrame(self._number, round(self._number / FPS * 1e9), grey, truth)

    def read(self, timeout: float) -> CameraFrame | None:
        raise AssertionError("the test hands pictures on itself")

    def close(self) -> None:
        """Nothing to release."""


class Call:
    """The rounds of a call's threads, one after the other, in seconds of its own."""

    def __init__(self, tmp_path: Path, shapes: list[Float32], *overrides: str) -> None:
        head = load_head()
        self.chair = Chair(head, shapes)
        self.saved: list[Path] = []
        self.told: list[Pose] = []  # poses to be shown at once
        camera: Callable[[], Chair] = lambda: self.chair  # noqa: E731
        self.people = People(
            load_config("cpu", (*TINY, *overrides), "cpu"),
            Options("chair", tmp_path / "me"),
            head,
            Mailbox("none"),
            note=lambda _where, text: None if text is None else pytest.fail(text),
            save=self._save,
            open_home=camera,
        )
        self.people.open_home(*self.people.stored())
        self.people.begin()
        self.person = self.people.current
        self._now = 0.0

    def sit(self, who: int | None, seconds: float) -> Learner | None:
        """Somebody is there for so long; at each picture, whoever is known learns a step."""
        person = self.person
        assert person is not None
        for _ in range(round(seconds * FPS)):
            self._now += 1.0 / FPS
            person.notice(person.track(self.chair.frame(who), self.told.append), self._now)
            learner = self.people.learner(person)
            if learner is not None:
                learner.work()
        return person.learner

    def _save(self, sitter: Sitter) -> None:
        if sitter.learner is not None and sitter.learner.save():
            self.saved.append(sitter.path)


def seen_by(learner: Learner, chair: Chair) -> set[int | None]:
    """Whose pictures a learner has in replay, but for those that an avatar has painted."""
    replay = learner.trainer.replay
    if isinstance(replay, DeviceReplay):
        numbers = [replay.frame_ids[slot] for slot in replay.order]
    else:
        numbers = [memory.frame_id for memory in replay.memories]
    return {chair.who[number] for number in numbers if number in chair.who}


def test_each_learns_from_their_own_pictures_and_goes_on_where_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    call = Call(tmp_path, [rng.normal(0.0, 0.9, 60).astype(np.float32) for _ in range(2)])
    first = call.sit(0, 3.0)
    assert first is not None
    call.sit(None, 1.0)
    steps = first.trainer.steps
    assert steps > 0
    told = len(call.told)
    second = call.sit(1, 4.0)
    assert 0 < len(call.told) - told < 4.0 * FPS, "until it is known who that is, they move nobody's head"
    assert second is not None
    assert second.path == tmp_path / "me-2"
    assert is_stored(tmp_path / "me")  # put away
    assert first.trainer.steps == steps  # nothing was learned while somebody else might have been there
    call.sit(None, 1.0)
    third = call.sit(0, 4.5)
    assert third is not None
    assert third.path == tmp_path / "me"
    assert third is not first
    assert third.trainer.steps > steps
    assert call.saved == [tmp_path / "me", tmp_path / "me-2"]
    call.people.close(save=True, release=True)
    assert call.saved[2:] == [tmp_path / "me"]
    assert not (tmp_path / "me-3").exists()
    for learner, who in ((first, 0), (second, 1), (third, 0)):
        assert seen_by(learner, call.chair) == {who}


def test_learning_pauses_and_the_face_is_calibrated_anew_when_that_is_asked_for(tmp_path: Path) -> None:
    shape = np.random.default_rng(5).normal(0.0, 0.9, 60).astype(np.float32)
    call = Call(tmp_path, [shape])
    learner = call.sit(0, 3.0)
    assert learner is not None
    call.people.halt(True)
    steps, seen = learner.trainer.steps, len(seen_by(learner, call.chair))
    assert steps > 0
    call.sit(0, 2.0)
    assert (learner.trainer.steps, len(seen_by(learner, call.chair))) == (steps, seen)
    assert learner.save(), "what was learned before is not lost"
    call.people.halt(False)
    call.sit(0, 1.0)
    assert learner.trainer.steps > steps

    call.people.recalibrate()
    assert call.sit(0, 2.0) is learner, "it is the same person"
    assert call.person is not None
    assert [event.kind for event in call.person.sitters.events] == ["calibration"]
    assert np.array_equal(call.person.tracker.shape, shape)
    with pytest.raises(UserError, match="not known yet"):
        call.people.withhold()  # this is no browser's camera


def test_a_call_that_was_started_to_learn_nothing_does_not_begin_to(tmp_path: Path) -> None:
    call = Call(tmp_path, [np.zeros(60, np.float32)], "run.freeze=true")
    with pytest.raises(UserError, match="without --freeze"):
        call.people.halt(False)
    call.people.halt(True)

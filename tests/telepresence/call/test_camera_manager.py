"""Two subjects in turn before one camera, with their learners: no frame of one gets into the avatar of the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from insta_runtime.avatar import is_stored
from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.types import Camera, Float32, HeadState
from telepresence.call.autosave import AvatarAutosave
from telepresence.call.call_options import CallOptions
from telepresence.call.camera_manager import CameraManager
from telepresence.call.learners import LearnerManager
from telepresence.call.subjects import Subject
from telepresence.config import load_config
from telepresence.learning.learner import Learner
from telepresence.runtime.audio import AudioBus
from telepresence.runtime.frames import CameraFrame, GroundTruth, TrackedState
from telepresence.runtime.mailbox import Mailbox
from telepresence.runtime.telemetry import Telemetry
from telepresence.sources import SourceIdentity
from tests.support.small_avatar import SMALL_AVATAR

SIDE = 64
FPS = 10.0
TINY = (
    "run.size=64",
    "avatar.learn.size=32",
    *SMALL_AVATAR,
)


class Chair:
    """A camera whose frames carry ground truth; each person is of one grey."""

    name, fps = "chair", FPS

    def __init__(self, head: HeadModel, shapes: list[Float32]) -> None:
        self.identity = SourceIdentity(head.sha256, shapes[0])
        self._shapes, self._state = shapes, HeadState.neutral(len(head.expression_names))
        self._number = 1000  # no number of a recalled frame
        self.who: dict[int, int | None] = {}
        disc = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2)) < 22
        self._matte = np.where(disc, 255, 0).astype(np.uint8)

    def frame(self, who: int | None) -> CameraFrame:
        self._number += 1
        self.who[self._number] = who
        grey = np.full((SIDE, SIDE, 3), 40 if who is None else 90 + 80 * who, np.uint8)
        grey += np.random.default_rng(self._number).integers(0, 30, grey.shape, np.uint8)  # frames differ
        truth = None
        if who is not None:
            camera = Camera(1.2 * SIDE, 1.2 * SIDE, SIDE / 2, SIDE / 2, SIDE, SIDE)
            truth = GroundTruth(self._state, self._matte, camera, shape=self._shapes[who])
        return CameraFrame(self._number, round(self._number / FPS * 1e9), grey, truth)

    def read(self, timeout: float) -> CameraFrame | None:
        raise AssertionError("the test passes the frames on itself")

    def close(self) -> None:
        """Nothing to release."""


class FailingTelemetry(Telemetry):
    """Fails the test at every error."""

    def report(self, where: str, text: str | None) -> None:
        if text is not None:
            pytest.fail(f"{where}: {text}")


class RecordingAutosave(AvatarAutosave):
    """Saves avatars, and records which were written; an error fails the test."""

    def __init__(self) -> None:
        super().__init__(FailingTelemetry())
        self.saved: list[Path] = []

    def save(self, subject: Subject) -> None:
        if subject.learner is not None and subject.learner.save():
            self.saved.append(subject.path)


class Call:
    """The rounds of a call's threads, one after the other, with a clock of their own."""

    def __init__(self, tmp_path: Path, shapes: list[Float32], *overrides: str) -> None:
        head = load_head()
        self.chair = Chair(head, shapes)
        self.told: list[TrackedState] = []  # states to be displayed at once
        camera: Callable[[], Chair] = lambda: self.chair  # noqa: E731
        config = load_config("cpu", (*TINY, *overrides), "cpu")
        self.autosave = RecordingAutosave()
        self.learners = LearnerManager(config, head, self.autosave)
        self.cameras = CameraManager(
            config,
            CallOptions("chair", tmp_path / "me"),
            head,
            browser=Mailbox("none"),
            audio=AudioBus(),
            telemetry=FailingTelemetry(),
            autosave=self.autosave,
            learners=self.learners,
            open_home_source=camera,
        )
        self.cameras.open_home(*self.cameras.find_avatar())
        self.cameras.use_home()
        self.camera = self.cameras.current
        self._now = 0.0

    def sit(self, who: int | None, seconds: float) -> Learner | None:
        """Person ``who`` is there for so long; with each frame the current learner does a step."""
        camera = self.camera
        assert camera is not None
        for _ in range(round(seconds * FPS)):
            self._now += 1.0 / FPS
            camera.tracking.update(camera.tracking.track(self.chair.frame(who), self.told.append), self._now)
            learner = self.learners.current(camera)
            if learner is not None:
                learner.run_once()
        return camera.learner


def seen_by(learner: Learner, chair: Chair) -> set[int | None]:
    """People whose frames a learner has in replay, without frames that an avatar has rendered."""
    numbers = learner.trainer.replay.frame_ids
    return {chair.who[number] for number in numbers if number in chair.who}


def test_each_subject_learns_from_its_own_frames_and_goes_on_after_coming_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    call = Call(tmp_path, [rng.normal(0.0, 0.9, 60).astype(np.float32) for _ in range(2)])
    first = call.sit(0, 3.0)
    assert first is not None
    call.sit(None, 1.0)
    steps = first.trainer.steps
    assert steps > 0
    told = len(call.told)
    second = call.sit(1, 4.0)
    assert 0 < len(call.told) - told < 4.0 * FPS, "an unverified face drives no avatar"
    assert second is not None
    assert second.path == tmp_path / "me-2"
    assert is_stored(tmp_path / "me")  # saved when another subject took over
    assert first.trainer.steps == steps  # nothing was learned while the identity was in doubt
    call.sit(None, 1.0)
    third = call.sit(0, 4.5)
    assert third is not None
    assert third.path == tmp_path / "me"
    assert third is not first
    assert third.trainer.steps > steps
    assert call.autosave.saved == [tmp_path / "me", tmp_path / "me-2"]
    call.cameras.close(save=True, release=True)
    assert call.autosave.saved[2:] == [tmp_path / "me"]
    assert not (tmp_path / "me-3").exists()
    for learner, who in ((first, 0), (second, 1), (third, 0)):
        assert seen_by(learner, call.chair) == {who}


def test_learning_pauses_and_the_face_is_calibrated_again_on_command(tmp_path: Path) -> None:
    shape = np.random.default_rng(5).normal(0.0, 0.9, 60).astype(np.float32)
    call = Call(tmp_path, [shape])
    learner = call.sit(0, 3.0)
    assert learner is not None
    call.cameras.pause_learning(True)
    steps, seen = learner.trainer.steps, len(seen_by(learner, call.chair))
    assert steps > 0
    call.sit(0, 2.0)
    assert (learner.trainer.steps, len(seen_by(learner, call.chair))) == (steps, seen)
    assert learner.save(), "what was learned before can be saved"
    call.cameras.pause_learning(False)
    call.sit(0, 1.0)
    assert learner.trainer.steps > steps

    call.cameras.recalibrate()
    assert call.sit(0, 2.0) is learner, "it is the same subject"
    assert call.camera is not None
    assert [event.kind for event in call.camera.events.read()] == ["calibration"]
    assert np.array_equal(call.camera.tracker.shape, shape)
    with pytest.raises(UserError, match="not known yet"):
        call.cameras.check_landmarks_only()  # this is no camera of a browser


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [("run.freeze=true", "without --freeze"), ("run.train_share=0", r"run\.train_share above 0")],
)
def test_a_call_started_without_learning_cannot_begin_to_learn(tmp_path: Path, setting: str, remedy: str) -> None:
    call = Call(tmp_path, [np.zeros(60, np.float32)], setting)
    with pytest.raises(UserError, match=remedy):
        call.cameras.pause_learning(False)
    call.cameras.pause_learning(True)

"""Subjects of one camera: no avatar learns from another person, and who comes back gets the same avatar."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.types import Camera, Float32, HeadState
from telepresence.call.subjects import Subject, SubjectRegistry
from telepresence.learning.identity import IdentityStatus
from telepresence.runtime.frames import CameraFrame, GroundTruth
from telepresence.tracking.face_models import FaceModels
from telepresence.tracking.ground_truth_tracker import GroundTruthTracker
from telepresence.tracking.landmark_residual import KnownSubject
from telepresence.tracking.tracker import FaceTracker

FPS = 30.0


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def shape_of(head: HeadModel, seed: int) -> Float32:
    return np.random.default_rng(seed).normal(0.0, 0.9, len(head.shape_dirs)).astype(np.float32)


class Seats:
    """A camera before which people come and go, with a tracker that gets ground truth."""

    def __init__(self, head: HeadModel, path: Path, first: Float32, stored: Float32 | None = None) -> None:
        self.subjects = SubjectRegistry(path, stored is not None)
        self.tracker = GroundTruthTracker(head, first, size=8)
        if stored is not None:
            self.tracker.recalibrate(KnownSubject(stored, None))
        self.shown: set[Path] = set()
        self.learned: set[Path] = set()
        self._frame = 0
        self._state = HeadState.neutral(len(head.expression_names))

    def sit(self, shape: Float32 | None, seconds: float) -> Subject:
        """A person of this shape, or none, is before the camera; `shown` and `learned` get the avatars in use."""
        self.shown, self.learned = set(), set()
        picture = np.zeros((8, 8, 3), np.uint8)
        for _ in range(round(seconds * FPS)):
            truth = None
            if shape is not None:
                truth = GroundTruth(self._state, picture[..., 0], Camera(9.6, 9.6, 4.0, 4.0, 8, 8), shape=shape)
            now = self._frame / FPS
            tracked = self.tracker.track(CameraFrame(self._frame, int(now * 1e9), picture, truth))
            self._frame += 1
            subject = self.subjects.identify(self.tracker, tracked, now)
            if subject is not None and tracked.observation is not None:
                if subject.verifier.may_drive:
                    self.shown.add(subject.path)
                if subject.verifier.confirmed:
                    self.learned.add(subject.path)
        return self.subjects.current


def test_two_people_in_turn_have_an_avatar_each(head: HeadModel, tmp_path: Path) -> None:
    one, other, third = (shape_of(head, seed) for seed in (1, 2, 3))
    first, second = tmp_path / "me", tmp_path / "me-2"
    seats = Seats(head, first, one)
    assert seats.sit(one, 3.0).path == first
    seats.sit(None, 1.0)
    assert seats.sit(other, 4.0).path == second
    assert seats.shown == seats.learned == {second}
    assert [each.path for each in seats.subjects.away] == [first]
    seats.sit(None, 1.0)

    assert seats.sit(one, 5.0).path == first  # the avatar of before is used again
    assert seats.shown == seats.learned == {first}
    assert seats.tracker.shape is one
    seats.sit(None, 1.0)
    assert seats.sit(third, 5.0).path == tmp_path / "me-3"
    assert seats.shown == seats.learned == {tmp_path / "me-3"}
    kinds = [event.kind for event in seats.subjects.events.read()]
    assert kinds == ["new_avatar", "person_back", "new_avatar"]


def test_without_a_pause_the_change_is_noticed_as_well(head: HeadModel, tmp_path: Path) -> None:
    one, other = shape_of(head, 1), shape_of(head, 2)
    seats = Seats(head, tmp_path / "me", one)
    seats.sit(one, 3.0)
    assert seats.sit(other, 4.0).path == tmp_path / "me-2"


def test_a_stored_avatar_is_not_displayed_before_the_identity_is_verified(head: HeadModel, tmp_path: Path) -> None:
    one, other = shape_of(head, 1), shape_of(head, 2)
    seats = Seats(head, tmp_path / "me", other, stored=one)
    assert seats.sit(other, 4.0).path == tmp_path / "me-2"
    assert tmp_path / "me" not in seats.shown | seats.learned
    assert not (tmp_path / "me").exists()

    seats = Seats(head, tmp_path / "me", one, stored=one)
    assert seats.sit(one, 0.1).verifier.status is IdentityStatus.LOOKING
    assert not seats.shown
    assert seats.sit(one, 0.9).verifier.confirmed
    assert seats.shown == {tmp_path / "me"}


def test_existing_folders_are_left_alone(head: HeadModel, tmp_path: Path) -> None:
    (tmp_path / "me-2").mkdir()
    one, other = shape_of(head, 1), shape_of(head, 2)
    seats = Seats(head, tmp_path / "me", one)
    seats.sit(one, 2.0)
    seats.sit(None, 1.0)
    assert seats.sit(other, 3.0).path == tmp_path / "me-3"


def test_an_answer_without_a_question_is_refused(head: HeadModel, tmp_path: Path) -> None:
    seats = Seats(head, tmp_path / "me", shape_of(head, 1))
    with pytest.raises(UserError, match="no question to answer"):
        seats.subjects.answer(True)


def test_an_answer_decides_the_identity(head: HeadModel, tmp_path: Path) -> None:
    """The shape is about half way between two people: only an answer can decide."""
    one, other = shape_of(head, 1), shape_of(head, 2)
    for part in np.linspace(0.1, 1.0, 19):
        alike = (one + np.float32(part) * (other - one)).astype(np.float32)
        residual = GroundTruthTracker(head, alike).residual_of(KnownSubject(one, None))
        assert residual is not None
        if np.sqrt(np.square(residual).sum(1).mean()) > 0.85:
            break
    for same in (True, False):
        seats = Seats(head, tmp_path / "me", one)
        seats.sit(one, 2.0)
        seats.sit(None, 1.0)
        seats.sit(alike, 9.0)
        assert seats.subjects.asked
        assert seats.learned == set()
        seats.subjects.answer(same)
        seats.sit(alike, 2.0)
        assert not seats.subjects.asked
        assert seats.learned == {tmp_path / ("me" if same else "me-2")}


def clip(path: Path, start: int, number: int) -> Iterator[np.ndarray]:
    """Frames of a clip, cropped to 480 x 480."""
    import av

    with av.open(str(path)) as file:
        for index, frame in enumerate(file.decode(file.streams.video[0])):
            if index >= start + number:
                return
            if index >= start:
                yield np.ascontiguousarray(frame.to_ndarray(format="rgb24")[:480, :480])


def test_people_before_a_camera_are_distinguished(
    head: HeadModel, shared: Path, face_models: FaceModels, tmp_path: Path
) -> None:
    """Real frames and the real tracker: a person leaves and comes back; later another person comes."""
    subjects = SubjectRegistry(tmp_path / "me", stored=False)
    tracker = FaceTracker(head, models=face_models, size=64)
    blank = np.zeros((480, 480, 3), np.uint8)
    number = 0

    def watch(pictures: Iterator[np.ndarray]) -> Subject:
        nonlocal number
        for rgb in pictures:
            now = number / FPS
            subjects.identify(tracker, tracker.track(CameraFrame(number, int(now * 1e9), rgb)), now)
            number += 1
        return subjects.current

    try:
        watch(clip(shared / "clips" / "d6.mp4", 0, 60))
        watch(iter([blank] * 24))
        back = watch(clip(shared / "clips" / "d6.mp4", 300, 30))
        assert back.path == tmp_path / "me"
        assert back.verifier.confirmed
        watch(iter([blank] * 24))
        assert watch(clip(shared / "clips" / "d9.mp4", 60, 54)).path == tmp_path / "me-2"
    finally:
        tracker.close()

"""Who sits before one camera: nobody's avatar takes in another, and who returns finds theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.types import Camera, Float32, HeadState
from telepresence.call.subjects import Sitter, Sitters
from telepresence.learning.identity import Standing
from telepresence.runtime.frames import CameraFrame, Truth
from telepresence.tracking.proportions import Known
from telepresence.tracking.tracker import FaceTracker, TruthTracker

FPS = 30.0


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def shape_of(head: HeadModel, seed: int) -> Float32:
    return np.random.default_rng(seed).normal(0.0, 0.9, len(head.shape_dirs)).astype(np.float32)


class Seats:
    """A camera at which people sit down and leave, for trackers that are told the truth."""

    def __init__(self, head: HeadModel, path: Path, first: Float32, stored: Float32 | None = None) -> None:
        self.sitters = Sitters(path, stored is not None)
        self.tracker = TruthTracker(head, first, size=8)
        if stored is not None:
            self.tracker.recalibrate(Known(stored, None))
        self.shown: set[Path] = set()
        self.learned: set[Path] = set()
        self._frame = 0
        self._state = HeadState.neutral(len(head.expression_names))

    def sit(self, shape: Float32 | None, seconds: float) -> Sitter:
        """Somebody of this shape, or nobody, is there; `shown` and `learned` are whose avatars have to do with them."""
        self.shown, self.learned = set(), set()
        picture = np.zeros((8, 8, 3), np.uint8)
        for _ in range(round(seconds * FPS)):
            truth = None
            if shape is not None:
                truth = Truth(self._state, picture[..., 0], Camera(9.6, 9.6, 4.0, 4.0, 8, 8), shape=shape)
            now = self._frame / FPS
            tracked = self.tracker.track(CameraFrame(self._frame, int(now * 1e9), picture, truth))
            self._frame += 1
            sitter = self.sitters.meet(self.tracker, tracked, now)
            if sitter is not None and tracked.observation is not None:
                if sitter.acquaintance.shows:
                    self.shown.add(sitter.path)
                if sitter.acquaintance.settled:
                    self.learned.add(sitter.path)
        return self.sitters.current


def test_two_people_in_turn_have_an_avatar_each(head: HeadModel, tmp_path: Path) -> None:
    one, other, third = (shape_of(head, seed) for seed in (1, 2, 3))
    first, second = tmp_path / "me", tmp_path / "me-2"
    seats = Seats(head, first, one)
    assert seats.sit(one, 3.0).path == first
    seats.sit(None, 1.0)
    assert seats.sit(other, 4.0).path == second
    assert seats.shown == seats.learned == {second}
    assert [each.path for each in seats.sitters.away] == [first]
    seats.sit(None, 1.0)

    assert seats.sit(one, 5.0).path == first  # the avatar of earlier is taken up again
    assert seats.shown == seats.learned == {first}
    assert seats.tracker.shape is one
    seats.sit(None, 1.0)
    assert seats.sit(third, 5.0).path == tmp_path / "me-3"
    assert seats.shown == seats.learned == {tmp_path / "me-3"}
    kinds = [event.kind for event in seats.sitters.events]
    assert kinds == ["new avatar", "person back", "new avatar"]


def test_without_a_pause_the_change_is_noticed_as_well(head: HeadModel, tmp_path: Path) -> None:
    one, other = shape_of(head, 1), shape_of(head, 2)
    seats = Seats(head, tmp_path / "me", one)
    seats.sit(one, 3.0)
    assert seats.sit(other, 4.0).path == tmp_path / "me-2"


def test_a_stored_avatar_is_not_shown_before_its_person_is_known(head: HeadModel, tmp_path: Path) -> None:
    one, other = shape_of(head, 1), shape_of(head, 2)
    seats = Seats(head, tmp_path / "me", other, stored=one)
    assert seats.sit(other, 4.0).path == tmp_path / "me-2"
    assert tmp_path / "me" not in seats.shown | seats.learned
    assert not (tmp_path / "me").exists()

    seats = Seats(head, tmp_path / "me", one, stored=one)
    assert seats.sit(one, 0.1).acquaintance.standing is Standing.LOOKING
    assert not seats.shown
    assert seats.sit(one, 0.9).acquaintance.settled
    assert seats.shown == {tmp_path / "me"}


def test_places_that_are_taken_are_left_alone(head: HeadModel, tmp_path: Path) -> None:
    (tmp_path / "me-2").mkdir()
    one, other = shape_of(head, 1), shape_of(head, 2)
    seats = Seats(head, tmp_path / "me", one)
    seats.sit(one, 2.0)
    seats.sit(None, 1.0)
    assert seats.sit(other, 3.0).path == tmp_path / "me-3"


def test_an_answer_without_a_question_is_refused(head: HeadModel, tmp_path: Path) -> None:
    seats = Seats(head, tmp_path / "me", shape_of(head, 1))
    with pytest.raises(UserError, match="nobody asks"):
        seats.sitters.answer(True)


def test_an_answer_settles_who_it_is(head: HeadModel, tmp_path: Path) -> None:
    """A shape about half way between two people's: nothing but an answer can tell."""
    one, other = shape_of(head, 1), shape_of(head, 2)
    for part in np.linspace(0.1, 1.0, 19):
        alike = (one + np.float32(part) * (other - one)).astype(np.float32)
        misfit = TruthTracker(head, alike).misfit_of(Known(one, None))
        assert misfit is not None
        if np.sqrt(np.square(misfit).sum(1).mean()) > 0.85:
            break
    for same in (True, False):
        seats = Seats(head, tmp_path / "me", one)
        seats.sit(one, 2.0)
        seats.sit(None, 1.0)
        seats.sit(alike, 9.0)
        assert seats.sitters.asked
        assert seats.learned == set()
        seats.sitters.answer(same)
        seats.sit(alike, 2.0)
        assert not seats.sitters.asked
        assert seats.learned == {tmp_path / ("me" if same else "me-2")}


def clip(path: Path, start: int, number: int) -> Iterator[np.ndarray]:
    """Pictures of a clip, 480 x 480 of them."""
    import av

    with av.open(str(path)) as file:
        for index, frame in enumerate(file.decode(file.streams.video[0])):
            if index >= start + number:
                return
            if index >= start:
                yield np.ascontiguousarray(frame.to_ndarray(format="rgb24")[:480, :480])


def test_people_before_a_camera_are_told_apart(head: HeadModel, shared: Path, models: Path, tmp_path: Path) -> None:
    """Real pictures and the real tracker: somebody leaves and returns; later somebody else comes."""
    sitters = Sitters(tmp_path / "me", stored=False)
    tracker = FaceTracker(head, models=models, size=64)
    blank = np.zeros((480, 480, 3), np.uint8)
    number = 0

    def watch(pictures: Iterator[np.ndarray]) -> Sitter:
        nonlocal number
        for rgb in pictures:
            now = number / FPS
            sitters.meet(tracker, tracker.track(CameraFrame(number, int(now * 1e9), rgb)), now)
            number += 1
        return sitters.current

    try:
        watch(clip(shared / "clips" / "d6.mp4", 0, 60))
        watch(iter([blank] * 24))
        back = watch(clip(shared / "clips" / "d6.mp4", 300, 30))
        assert back.path == tmp_path / "me"
        assert back.acquaintance.settled
        watch(iter([blank] * 24))
        assert watch(clip(shared / "clips" / "d9.mp4", 60, 54)).path == tmp_path / "me-2"
    finally:
        tracker.close()

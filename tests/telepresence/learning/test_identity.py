"""Whose face it is: what was measured on real people, and what follows from it over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, repeat

import numpy as np
import pytest

from telepresence.learning.identity import (
    LIKELY_MM,
    LOOK_S,
    LOST_S,
    OTHER_MM,
    PATIENCE_S,
    PICTURES_S,
    IdentityVerifier,
    IdentityEvidence,
    IdentityStatus,
    judge,
)

FPS = 30.0
POINTS = 192

# Mean residual (mm) after 1.5 s of people before a live tracker that had known somebody for four seconds.
SAME = (0.32, 0.35, 0.47, 0.86, 0.68, 0.47, 0.76)
OTHERS = (
    1.62,
    1.75,
    1.38,
    1.02,
    1.78,
    1.53,
    1.70,
    2.24,
    1.74,
    1.45,
    0.82,
    0.72,
    1.54,
    1.48,
    2.21,
    1.89,
    2.11,
    1.87,
    3.09,
)


def sightings(mm: float, seed: int = 0, noise: float = 0.5, **rest) -> Iterator[IdentityEvidence]:
    """Endless pictures of a face whose residual has this mean, and that much noise in each."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(0.0, 1.0, (POINTS, 2))
    mean *= mm / np.sqrt(np.square(mean).sum(1).mean())
    for _ in count():
        yield IdentityEvidence((mean + rng.normal(0.0, noise / np.sqrt(2.0), mean.shape)).astype(np.float32), **rest)


def play(who: IdentityVerifier, pictures: Iterable[IdentityEvidence], start: float, seconds: float) -> tuple[IdentityVerifier, float]:
    """After so many seconds of pictures from second ``start`` on; and then."""
    number = round(seconds * FPS)
    for index, picture in zip(range(number), pictures, strict=False):
        who = who.after(picture, start + index / FPS)
    return who, start + number / FPS


NOBODY = repeat(IdentityEvidence(None))


def met() -> tuple[IdentityVerifier, float]:
    """Somebody who was known and was gone for a second."""
    who, now = play(IdentityVerifier(), sightings(0.3), 0.0, 2.0)
    assert who.confirmed
    return play(who, NOBODY, now, LOST_S + 0.3)


def test_proportions_alone_never_mistake_one_of_the_measured_people_for_another():
    assert not [mm for mm in SAME if judge(mm, None) is False]
    assert not [mm for mm in OTHERS if judge(mm, None) is True]
    assert sum(judge(mm, None) is True for mm in SAME) >= 4
    assert sum(judge(mm, None) is False for mm in OTHERS) >= 16


def test_with_pictures_nobody_is_in_doubt():
    """The same person's pictures were at most 2.3 dB worse than usual, another's at least 10 dB."""
    assert all(judge(mm, 2.3) is True for mm in SAME)
    assert all(judge(mm, 10.0) is False for mm in OTHERS)


@pytest.mark.parametrize(
    ("mm", "worse_db", "verdict"),
    [
        (0.5, 9.0, None),  # the same proportions, but nothing like them: masked, or a twin
        (1.6, 1.0, None),  # a picture like theirs, but another face
        (0.9, 5.0, None),
        (0.9, None, None),
    ],
)
def test_what_contradicts_itself_is_in_doubt(mm, worse_db, verdict):
    assert judge(mm, worse_db) is verdict


def test_a_new_person_is_known_as_long_as_the_face_stays():
    who, now = play(IdentityVerifier(), sightings(0.4), 0.0, 20.0)
    assert who.confirmed
    assert who.may_drive
    who, now = play(who, NOBODY, now, LOST_S - 0.2)  # a missed detection, a glance away
    who, _ = play(who, sightings(0.4), now, 0.1)
    assert who.confirmed


def test_who_returns_and_fits_is_learned_again_at_once():
    who, now = met()
    who = who.after(next(sightings(0.3)), now)
    assert who.status is IdentityStatus.LOOKING
    assert not who.may_drive
    who, _ = play(who, sightings(0.3), now + 1 / FPS, 0.3)
    assert who.confirmed


def test_another_person_is_told_within_two_seconds_and_never_shown():
    who, now = met()
    pictures = sightings(1.6)
    for index in range(round((LOOK_S + 0.2) * FPS)):
        assert not who.may_drive or index == 0
        who = who.after(next(pictures), now + index / FPS)
    assert who.status is IdentityStatus.OTHER
    assert not who.may_drive
    again, _ = play(who, sightings(0.1), now + 2.0, 5.0)
    assert again.status is IdentityStatus.OTHER  # what follows is somebody else's matter


def test_in_doubt_somebody_is_asked_and_the_answer_holds():
    who, now = met()
    pictures = sightings(0.9, worse_db=5.0)
    who, now = play(who, pictures, now, PATIENCE_S + 0.2)
    assert who.status is IdentityStatus.ASKING
    assert who.may_drive  # it is likely them
    assert not who.confirmed
    yes, no = (who.after(next(sightings(0.9, answer=answer)), now) for answer in (True, False))
    assert no.status is IdentityStatus.OTHER
    assert yes.settled
    # What was said to be theirs is from now on what is usual for them.
    yes, now = play(yes, pictures, now, 5.0)
    assert yes.settled
    yes, now = play(yes, NOBODY, now, LOST_S + 0.3)
    yes, _ = play(yes, sightings(0.9), now, 0.5)
    assert yes.settled


def test_no_question_before_the_avatar_was_compared():
    who, now = met()
    who, now = play(who, sightings(0.9), now, PICTURES_S - 0.5)
    assert who.status is IdentityStatus.LOOKING
    who, _ = play(who, sightings(0.9), now, 1.0)
    assert who.status is IdentityStatus.ASKING


def test_strange_pictures_are_not_shown_though_proportions_fit():
    who, now = met()
    who, _ = play(who, sightings(0.5, worse_db=12.0), now, PATIENCE_S + 0.2)
    assert who.status is IdentityStatus.ASKING
    assert not who.may_drive


def test_an_avatar_of_an_earlier_call_meets_its_first_face():
    who = IdentityVerifier.stored()
    assert not who.confirmed
    assert not who.may_drive
    assert play(who, sightings(0.35), 3.0, 1.0)[0].settled
    assert play(who, sightings(2.0), 3.0, 2.0)[0].status is IdentityStatus.OTHER


def test_a_head_that_jumps_is_looked_at():
    here, there = np.float32([0.0, 0.0, 0.6]), np.float32([0.25, 0.0, 0.6])
    who, now = play(IdentityVerifier(), sightings(0.4, place=here), 0.0, 2.0)
    slow, _ = play(who, sightings(0.4, place=np.float32([0.05, 0.0, 0.6])), now, 0.1)
    assert slow.settled
    assert not play(who, sightings(0.4, place=there), now, 0.1)[0].settled


def test_another_face_in_the_very_place_is_noticed():
    who, now = play(IdentityVerifier(), sightings(0.4), 0.0, 5.0)
    seconds = 0.0
    while who.confirmed:
        who, now = play(who, sightings(2.0, seed=1), now, 0.1)
        seconds += 0.1
        assert seconds < 1.5
    assert play(who, sightings(2.0, seed=1), now, 2.0)[0].status is IdentityStatus.OTHER


def test_bounds_are_in_order():
    assert LIKELY_MM <= OTHER_MM
    assert LOOK_S < PATIENCE_S < PICTURES_S

"""Identity verification: thresholds against measurements of real people, and the state machine over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, repeat

import numpy as np
import pytest

from telepresence.learning.identity import (
    ASK_S,
    ASK_UNCOMPARED_S,
    DECIDE_S,
    LIKELY_MM,
    LOST_S,
    OTHER_MM,
    IdentityEvidence,
    IdentityStatus,
    IdentityVerifier,
    same_subject,
)

FPS = 30.0
POINTS = 192

# Mean residual (mm) after 1.5 s of people before a live tracker calibrated on four seconds of a subject.
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


def evidence(mm: float, seed: int = 0, noise: float = 0.5, **rest) -> Iterator[IdentityEvidence]:
    """Endless evidence of a face whose residual has this mean, with noise per frame."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(0.0, 1.0, (POINTS, 2))
    mean *= mm / np.sqrt(np.square(mean).sum(1).mean())
    for _ in count():
        yield IdentityEvidence((mean + rng.normal(0.0, noise / np.sqrt(2.0), mean.shape)).astype(np.float32), **rest)


def play(
    who: IdentityVerifier, pictures: Iterable[IdentityEvidence], start: float, seconds: float
) -> tuple[IdentityVerifier, float]:
    """The state after so many seconds of evidence from second ``start`` on, and the second then."""
    number = round(seconds * FPS)
    for index, picture in zip(range(number), pictures, strict=False):
        who = who.after(picture, start + index / FPS)
    return who, start + number / FPS


NO_FACE = repeat(IdentityEvidence(None))


def returned() -> tuple[IdentityVerifier, float]:
    """The state of a confirmed subject whose face was lost for a second."""
    who, now = play(IdentityVerifier(), evidence(0.3), 0.0, 2.0)
    assert who.confirmed
    return play(who, NO_FACE, now, LOST_S + 0.3)


def test_the_residual_alone_never_confuses_two_measured_people():
    assert not [mm for mm in SAME if same_subject(mm, None) is False]
    assert not [mm for mm in OTHERS if same_subject(mm, None) is True]
    assert sum(same_subject(mm, None) is True for mm in SAME) >= 4
    assert sum(same_subject(mm, None) is False for mm in OTHERS) >= 16


def test_with_rendered_frames_no_measured_person_is_in_doubt():
    """Frames of the same subject were at most 2.3 dB worse than usual, of another at least 10 dB."""
    assert all(same_subject(mm, 2.3) is True for mm in SAME)
    assert all(same_subject(mm, 10.0) is False for mm in OTHERS)


@pytest.mark.parametrize(
    ("mm", "worse_db", "verdict"),
    [
        (0.5, 9.0, None),  # the same proportions, but other frames: a mask or a twin
        (1.6, 1.0, None),  # similar frames, but another face
        (0.9, 5.0, None),
        (0.9, None, None),
    ],
)
def test_contradicting_evidence_is_in_doubt(mm, worse_db, verdict):
    assert same_subject(mm, worse_db) is verdict


def test_a_new_subject_is_confirmed_while_the_face_stays():
    who, now = play(IdentityVerifier(), evidence(0.4), 0.0, 20.0)
    assert who.confirmed
    assert who.may_drive
    who, now = play(who, NO_FACE, now, LOST_S - 0.2)  # a missed detection, a glance away
    who, _ = play(who, evidence(0.4), now, 0.1)
    assert who.confirmed


def test_a_returning_subject_is_confirmed_at_once():
    who, now = returned()
    who = who.after(next(evidence(0.3)), now)
    assert who.status is IdentityStatus.LOOKING
    assert not who.may_drive
    who, _ = play(who, evidence(0.3), now + 1 / FPS, 0.3)
    assert who.confirmed


def test_another_subject_is_recognised_within_two_seconds_and_never_drives_the_avatar():
    who, now = returned()
    pictures = evidence(1.6)
    for index in range(round((DECIDE_S + 0.2) * FPS)):
        assert not who.may_drive or index == 0
        who = who.after(next(pictures), now + index / FPS)
    assert who.status is IdentityStatus.OTHER
    assert not who.may_drive
    again, _ = play(who, evidence(0.1), now + 2.0, 5.0)
    assert again.status is IdentityStatus.OTHER  # the decision is final


def test_in_doubt_the_user_is_asked_and_the_answer_holds():
    who, now = returned()
    pictures = evidence(0.9, worse_db=5.0)
    who, now = play(who, pictures, now, ASK_S + 0.2)
    assert who.status is IdentityStatus.ASKING
    assert who.may_drive  # the residual is low
    assert not who.confirmed
    yes, no = (who.after(next(evidence(0.9, answer=answer)), now) for answer in (True, False))
    assert no.status is IdentityStatus.OTHER
    assert yes.confirmed
    # After the answer the residual is compared with the one at that time.
    yes, now = play(yes, pictures, now, 5.0)
    assert yes.confirmed
    yes, now = play(yes, NO_FACE, now, LOST_S + 0.3)
    yes, _ = play(yes, evidence(0.9), now, 0.5)
    assert yes.confirmed


def test_no_question_before_the_avatar_was_compared():
    who, now = returned()
    who, now = play(who, evidence(0.9), now, ASK_UNCOMPARED_S - 0.5)
    assert who.status is IdentityStatus.LOOKING
    who, _ = play(who, evidence(0.9), now, 1.0)
    assert who.status is IdentityStatus.ASKING


def test_strange_frames_do_not_drive_the_avatar_though_the_residual_fits():
    who, now = returned()
    who, _ = play(who, evidence(0.5, worse_db=12.0), now, ASK_S + 0.2)
    assert who.status is IdentityStatus.ASKING
    assert not who.may_drive


def test_the_first_face_of_a_stored_avatar_is_verified():
    who = IdentityVerifier.stored()
    assert not who.confirmed
    assert not who.may_drive
    assert play(who, evidence(0.35), 3.0, 1.0)[0].confirmed
    assert play(who, evidence(2.0), 3.0, 2.0)[0].status is IdentityStatus.OTHER


def test_a_head_that_jumps_is_verified_again():
    here, there = np.float32([0.0, 0.0, 0.6]), np.float32([0.25, 0.0, 0.6])
    who, now = play(IdentityVerifier(), evidence(0.4, place=here), 0.0, 2.0)
    slow, _ = play(who, evidence(0.4, place=np.float32([0.05, 0.0, 0.6])), now, 0.1)
    assert slow.confirmed
    assert not play(who, evidence(0.4, place=there), now, 0.1)[0].confirmed


def test_another_face_at_the_same_position_is_noticed():
    who, now = play(IdentityVerifier(), evidence(0.4), 0.0, 5.0)
    seconds = 0.0
    while who.confirmed:
        who, now = play(who, evidence(2.0, seed=1), now, 0.1)
        seconds += 0.1
        assert seconds < 1.5
    assert play(who, evidence(2.0, seed=1), now, 2.0)[0].status is IdentityStatus.OTHER


def test_thresholds_are_in_order():
    assert LIKELY_MM <= OTHER_MM
    assert DECIDE_S < ASK_S < ASK_UNCOMPARED_S

"""Is this the person whose avatar it is?  A pure function of what tracking measured, what pictures say, and time.

    KNOWN    the person; everything goes on
    LOOKING  a face is back after it was lost, or an avatar of an earlier call meets its first, or the face jumped:
             learning pauses until it is known who that is
    ASKING   neither proportions nor pictures can tell: somebody is asked, learning still pauses
    OTHER    somebody else: they get an avatar of their own

Two things are measured: the residual of the face with the calibrated proportions (`tracking.proportions`), whose mean
over a second or two tells people apart, and by how much the avatar, in the same states and with the light matched,
renders the new pictures worse than usual (`appearance`).  Nobody's avatar moves with a face that is not likely theirs.

What the bounds were chosen from, with trackers that saw 4 s of one of four people and then 3 s of one of the four:
the same person 0.32 to 0.86 mm after 1.5 s and 0.30 to 0.82 mm after 3 s, another 0.72 to 3.1 mm and 0.76 to 2.9 mm;
pictures of the same person, later or in another light, 1.1 dB better to 2.3 dB worse than usual, of another 10 dB or
more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from insta_runtime.types import Float32

LOST_S: Final = 0.7
"""Without a face for so many seconds, whoever comes next may be somebody else (as `session.LOST_AFTER_S`)."""
SILENT_S: Final = 5.0
"""Likewise if there was no picture at all for so many seconds."""
SKIPPED: Final = 3
"""Pictures of a face that has just come into view whose fit is not to be believed yet."""
SOON: Final = 5
"""Pictures after these that give a first impression ..."""
SOON_SAME_MM: Final = 0.6
"""... that is enough with a residual below this, and nothing strange about the pictures ..."""
LIKELY_MM: Final = 1.15
"""... and makes it likely below this: the avatar moves."""
LOOK_S: Final = 1.5
LOOK_PICTURES: Final = 12
"""A face is looked at for so many seconds and pictures before anything is decided ..."""
PATIENCE_S: Final = 3.5
"""... and for so many before somebody is asked, or longer (`PICTURES_S`) while the avatar was not compared yet."""
PICTURES_S: Final = 8.0
SAME_MM: Final = 0.65
"""The same person's residual is below this ..."""
OTHER_MM: Final = 1.15
"""... another's above this; in between pictures decide."""
ALIKE_DB: Final = 3.0
"""Pictures of the same person are rendered worse than usual by less than this ..."""
STRANGE_DB: Final = 8.0
"""... those of another by more than this."""
WATCH_S: Final = 0.5
"""Time constant of the residual of a person who is known ..."""
WATCH_MM: Final = 1.3
"""... above which it is looked at again whether it is still them."""
JUMP_M: Final = 0.15
"""A head that moved so far from one picture to the next is perhaps another."""


class IdentityStatus(StrEnum):
    """Who the face before the camera is taken for."""

    KNOWN = "known"
    LOOKING = "looking"
    ASKING = "asking"
    OTHER = "other"


@dataclass(frozen=True)
class IdentityEvidence:
    """What one picture says of who is in it.

    Attributes:
        residual: (N, 2) mm, None without a face.
        place: (3,) m, where the head is in camera space; None where it is not tracked.
        worse_db: by how much the avatar renders recent pictures of this face worse than usual; None if unknown.
        answer: what somebody said who was asked: True for the same person.
    """

    residual: Float32 | None
    place: Float32 | None = None
    worse_db: float | None = None
    answer: bool | None = None


@dataclass(frozen=True)
class IdentityVerifier:
    """What is known of who the face is, at second ``now``.

    Attributes:
        since: when the face was first seen that is being looked at; None before there is one.
        likely: whether a face that is looked at is likely the person: their avatar may move with it.
        mm: the residual of it all, None before it is known.
    """

    standing: IdentityStatus = IdentityStatus.KNOWN
    since: float | None = None
    likely: bool = True
    mm: float | None = None
    _pictures: int = 0
    _mean: Float32 | None = field(default=None, repr=False)
    _usual: Float32 | None = field(default=None, repr=False)  # of a person who was confirmed by somebody
    _last: float | None = None  # when there was a face
    _place: Float32 | None = field(default=None, repr=False)
    _gone: bool = False  # the last picture showed no face

    @staticmethod
    def stored() -> IdentityVerifier:
        """With the person of an avatar of an earlier call: whoever comes first is looked at."""
        return IdentityVerifier(IdentityStatus.LOOKING, likely=False)

    @property
    def settled(self) -> bool:
        """Whether the face is known to be the person's: it is learned from."""
        return self.status is IdentityStatus.KNOWN

    @property
    def shows(self) -> bool:
        """Whether the person's avatar may move with this face."""
        return self.settled or (self.likely and self.status is not IdentityStatus.OTHER)

    def after(self, seen: IdentityEvidence, now: float) -> IdentityVerifier:
        """Take in the picture of second ``now``."""
        if self.status is IdentityStatus.OTHER:
            return self
        if seen.answer is not None and self.status is IdentityStatus.ASKING:
            return self._answered(seen.answer)
        if seen.residual is None:
            return replace(self, _place=None, _gone=True)
        looked = self._again(now) if self._anew(seen, now) else self
        looked = looked._measured(seen.residual, now)
        looked = replace(looked, _last=now, _place=seen.place, _gone=False)
        return looked._watched(now) if looked.settled else looked._decided(seen.worse_db, now)

    def _anew(self, seen: IdentityEvidence, now: float) -> bool:
        """Whether this may be another face than that of the last picture."""
        gone = self._last is not None and now - self._last > (LOST_S if self._gone else SILENT_S)
        moved = (
            seen.place is not None
            and self._place is not None
            and float(np.linalg.norm(seen.place - self._place)) > JUMP_M
        )
        return gone or moved

    def _again(self, now: float) -> IdentityVerifier:
        return replace(
            self, standing=IdentityStatus.LOOKING, since=now, likely=False, mm=None, _pictures=0, _mean=None, _place=None
        )

    def _measured(self, residual: Float32, now: float) -> IdentityVerifier:
        """With the mean over all pictures of a face that is looked at, or over the last of one that is known."""
        pictures = self._pictures + 1
        since = now if self.since is None else self.since
        if not self.settled and pictures <= SKIPPED:
            return replace(self, _pictures=pictures, since=since)
        beside = residual if self._usual is None else residual - self._usual
        if self._mean is None:
            mean = beside
        elif self.settled:
            part = 1.0 - np.exp(-max(now - (now if self._last is None else self._last), 0.0) / WATCH_S)
            mean = self._mean + np.float32(part) * (beside - self._mean)
        else:
            mean = self._mean + (beside - self._mean) / np.float32(pictures - SKIPPED)
        mm = float(np.sqrt(np.square(mean).sum(1).mean()))
        return replace(self, _pictures=pictures, since=since, _mean=mean, mm=mm)

    def _watched(self, now: float) -> IdentityVerifier:
        return self._again(now) if self.mm is not None and self.mm > WATCH_MM else self

    def _decided(self, worse_db: float | None, now: float) -> IdentityVerifier:
        seconds = now - (now if self.since is None else self.since)
        pictures = self._pictures - SKIPPED
        if self.mm is None or pictures < SOON:
            return self
        strange = worse_db is not None and worse_db > STRANGE_DB
        looked = replace(self, likely=self.mm < LIKELY_MM and not strange)
        if self.mm < SOON_SAME_MM and (worse_db is None or worse_db < ALIKE_DB):
            return looked._known()
        if seconds < LOOK_S or pictures < LOOK_PICTURES:
            return looked
        verdict = judge(self.mm, worse_db)
        if verdict is not None:
            return looked._known() if verdict else replace(looked, standing=IdentityStatus.OTHER)
        patience = PATIENCE_S if worse_db is not None else PICTURES_S
        return replace(looked, standing=IdentityStatus.ASKING) if seconds > patience else looked

    def _known(self) -> IdentityVerifier:
        return replace(self, standing=IdentityStatus.KNOWN, since=None, likely=True)

    def _answered(self, same: bool) -> IdentityVerifier:
        if not same:
            return replace(self, standing=IdentityStatus.OTHER, likely=False)
        usual = self._mean
        if usual is not None and self._usual is not None:
            usual = usual + self._usual
        return replace(self._known(), _usual=usual, _mean=None, mm=None)


def judge(mm: float, worse_db: float | None) -> bool | None:
    """Whether a face with this residual, and pictures so much worse than usual, is the person's; None if in doubt."""
    if worse_db is None:
        return True if mm < SAME_MM else False if mm > OTHER_MM else None
    if mm < SAME_MM:
        return True if worse_db < STRANGE_DB else None
    if mm > OTHER_MM:
        return False if worse_db > ALIKE_DB else None
    return True if worse_db < ALIKE_DB else False if worse_db > STRANGE_DB else None

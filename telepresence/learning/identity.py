"""Identity verification: decides whether the tracked face is the subject that an avatar belongs to.  Pure functions.

    KNOWN    the avatar's subject; training continues
    LOOKING  a face has returned after it was lost, or it jumped, or it is the first one of a call with a stored avatar:
             training pauses until the identity is decided
    ASKING   neither the residual nor the rendered frames decide: the user is asked, training stays paused
    OTHER    another subject, who gets a separate avatar

Two quantities are measured: the residual of the face against the calibrated proportions
(`tracking.landmark_residual`), whose mean over one or two seconds separates subjects; and the PSNR by which the avatar
renders the new frames worse than usual in the same head states, with matched light (`appearance`).  A face
drives the avatar only if it is likely the subject's.

The thresholds were chosen from trackers that saw 4 s of one of four subjects and then 3 s of one of the four.  The same
subject: 0.32 to 0.86 mm after 1.5 s and 0.30 to 0.82 mm after 3 s; another one: 0.72 to 3.1 mm and 0.76 to 2.9 mm.
Frames of the same subject, later or in another light: 1.1 dB better to 2.3 dB worse than usual; of another: 10 dB worse
or more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from insta_runtime.types import Float32

LOST_S: Final = 0.7
"""Seconds without a face after which the next face must be verified (the same as `session.LOST_AFTER_S`)."""
SILENT_S: Final = 5.0
"""Seconds without a camera frame after which the next face must be verified."""
SKIPPED_FRAMES: Final = 3
"""Number of first frames of a new face whose residual is ignored, because the fit has not converged yet."""
EARLY_FRAMES: Final = 5
"""Number of measured frames after which a first, provisional decision is made."""
EARLY_SAME_MM: Final = 0.6
"""Mean residual (mm) below which the provisional decision confirms the subject, unless the PSNR contradicts it."""
LIKELY_MM: Final = 1.15
"""Mean residual (mm) below which the face is likely the subject's, so that it may drive the avatar."""
DECIDE_S: Final = 1.5
"""Minimum seconds for which a new face is measured before its identity is decided."""
DECIDE_FRAMES: Final = 12
"""Minimum number of measured frames of a new face before its identity is decided."""
ASK_S: Final = 3.5
"""Seconds without a decision after which the user is asked, if the PSNR of the avatar on the frames is known."""
ASK_UNCOMPARED_S: Final = 8.0
"""Seconds without a decision after which the user is asked, if the PSNR of the avatar on the frames is unknown."""
SAME_MM: Final = 0.65
"""Mean residual (mm) below which the face counts as the subject's."""
OTHER_MM: Final = 1.15
"""Mean residual (mm) above which the face counts as another subject's; between `SAME_MM` and this the PSNR decides."""
ALIKE_DB: Final = 3.0
"""PSNR loss (dB) against the usual PSNR below which the frames are consistent with the same subject."""
STRANGE_DB: Final = 8.0
"""PSNR loss (dB) against the usual PSNR above which the frames indicate another subject."""
MONITOR_S: Final = 0.5
"""Time constant (seconds) of the mean residual of a confirmed subject."""
MONITOR_MM: Final = 1.3
"""Mean residual (mm) of a confirmed subject above which the identity is verified again."""
JUMP_M: Final = 0.15
"""Movement of the head (metres) between two frames after which the identity is verified again."""


class IdentityStatus(StrEnum):
    """Status of the identity verification: subject known, being verified, user is asked, or another subject."""

    KNOWN = "known"
    LOOKING = "looking"
    ASKING = "asking"
    OTHER = "other"


@dataclass(frozen=True)
class IdentityEvidence:
    """Evidence of one frame about the identity of the face.

    Attributes:
        residual: (N, 2) landmark deviations in mm from the subject's calibrated proportions; None without a face.
        place: (3,) position of the head in camera space, in metres; None if it is not tracked.
        worse_db: PSNR loss (dB) of the avatar on recent frames of this face against its usual PSNR; None if unknown.
        answer: the user's answer, True if the face is the avatar's subject; None without one.
    """

    residual: Float32 | None
    place: Float32 | None = None
    worse_db: float | None = None
    answer: bool | None = None


@dataclass(frozen=True)
class IdentityVerifier:
    """State machine of the identity verification of one subject's avatar; `after` returns the next state.

    Attributes:
        status: current decision.
        since: monotonic second of the first frame of the face being verified; None if none is.
        likely: whether an unverified face is probably the subject's.
        residual_mm: RMS over the landmarks of their mean residual, in mm; None if unknown.
    """

    status: IdentityStatus = IdentityStatus.KNOWN
    since: float | None = None
    likely: bool = True
    residual_mm: float | None = None
    _frames: int = 0
    _mean: Float32 | None = field(default=None, repr=False)
    _offset: Float32 | None = field(default=None, repr=False)  # usual residual of a subject confirmed by the user
    _last: float | None = None  # second of the last frame with a face
    _place: Float32 | None = field(default=None, repr=False)
    _gone: bool = False  # the last frame showed no face

    @staticmethod
    def stored() -> IdentityVerifier:
        """The initial state for an avatar of an earlier call, in which the first face must be verified."""
        return IdentityVerifier(IdentityStatus.LOOKING, likely=False)

    @property
    def confirmed(self) -> bool:
        """Whether the face is known to be the subject's, so that it may be used for training."""
        return self.status is IdentityStatus.KNOWN

    @property
    def may_drive(self) -> bool:
        """Whether this face may drive the subject's avatar: it is confirmed, or likely the subject's."""
        return self.confirmed or (self.likely and self.status is not IdentityStatus.OTHER)

    def after(self, evidence: IdentityEvidence, now: float) -> IdentityVerifier:
        """The next state, after a frame with this evidence at monotonic second ``now``."""
        if self.status is IdentityStatus.OTHER:
            return self
        if evidence.answer is not None and self.status is IdentityStatus.ASKING:
            return self._answered(evidence.answer)
        if evidence.residual is None:
            return replace(self, _place=None, _gone=True)
        state = self._restarted(now) if self._must_verify(evidence, now) else self
        state = state._averaged(evidence.residual, now)
        state = replace(state, _last=now, _place=evidence.place, _gone=False)
        return state._monitored(now) if state.confirmed else state._decided(evidence.worse_db, now)

    def _must_verify(self, evidence: IdentityEvidence, now: float) -> bool:
        """Whether this may be another face than that of the last frame."""
        gone = self._last is not None and now - self._last > (LOST_S if self._gone else SILENT_S)
        moved = (
            evidence.place is not None
            and self._place is not None
            and float(np.linalg.norm(evidence.place - self._place)) > JUMP_M
        )
        return gone or moved

    def _restarted(self, now: float) -> IdentityVerifier:
        return replace(
            self,
            status=IdentityStatus.LOOKING,
            since=now,
            likely=False,
            residual_mm=None,
            _frames=0,
            _mean=None,
            _place=None,
        )

    def _averaged(self, residual: Float32, now: float) -> IdentityVerifier:
        """With the mean residual updated: over all frames of an unverified face, or decaying for a confirmed one."""
        frames = self._frames + 1
        since = now if self.since is None else self.since
        if not self.confirmed and frames <= SKIPPED_FRAMES:
            return replace(self, _frames=frames, since=since)
        relative = residual if self._offset is None else residual - self._offset
        if self._mean is None:
            mean = relative
        elif self.confirmed:
            part = 1.0 - np.exp(-max(now - (now if self._last is None else self._last), 0.0) / MONITOR_S)
            mean = self._mean + np.float32(part) * (relative - self._mean)
        else:
            mean = self._mean + (relative - self._mean) / np.float32(frames - SKIPPED_FRAMES)
        residual_mm = float(np.sqrt(np.square(mean).sum(1).mean()))
        return replace(self, _frames=frames, since=since, _mean=mean, residual_mm=residual_mm)

    def _monitored(self, now: float) -> IdentityVerifier:
        return self._restarted(now) if self.residual_mm is not None and self.residual_mm > MONITOR_MM else self

    def _decided(self, worse_db: float | None, now: float) -> IdentityVerifier:
        seconds = now - (now if self.since is None else self.since)
        frames = self._frames - SKIPPED_FRAMES
        if self.residual_mm is None or frames < EARLY_FRAMES:
            return self
        strange = worse_db is not None and worse_db > STRANGE_DB
        state = replace(self, likely=self.residual_mm < LIKELY_MM and not strange)
        if self.residual_mm < EARLY_SAME_MM and (worse_db is None or worse_db < ALIKE_DB):
            return state._known()
        if seconds < DECIDE_S or frames < DECIDE_FRAMES:
            return state
        same = same_subject(self.residual_mm, worse_db)
        if same is not None:
            return state._known() if same else replace(state, status=IdentityStatus.OTHER)
        ask_s = ASK_S if worse_db is not None else ASK_UNCOMPARED_S
        return replace(state, status=IdentityStatus.ASKING) if seconds > ask_s else state

    def _known(self) -> IdentityVerifier:
        return replace(self, status=IdentityStatus.KNOWN, since=None, likely=True)

    def _answered(self, same: bool) -> IdentityVerifier:
        if not same:
            return replace(self, status=IdentityStatus.OTHER, likely=False)
        offset = self._mean
        if offset is not None and self._offset is not None:
            offset = offset + self._offset
        return replace(self._known(), _offset=offset, _mean=None, residual_mm=None)


def same_subject(residual_mm: float, worse_db: float | None) -> bool | None:
    """Whether a face is the avatar's subject, from its mean residual (mm) and the PSNR loss on its frames (dB).

    ``worse_db`` None: not measured.  Returns None if the two do not decide.
    """
    if worse_db is None:
        return True if residual_mm < SAME_MM else False if residual_mm > OTHER_MM else None
    if residual_mm < SAME_MM:
        return True if worse_db < STRANGE_DB else None
    if residual_mm > OTHER_MM:
        return False if worse_db > ALIKE_DB else None
    return True if worse_db < ALIKE_DB else False if worse_db > STRANGE_DB else None

"""Subjects of one camera: the people it has seen, one at a time, each with an avatar."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.errors import UserError
from telepresence.call.event_log import EventKind, EventLog
from telepresence.call.session import Session
from telepresence.learning.budget import LearningBudget
from telepresence.learning.identity import IdentityEvidence, IdentityStatus, IdentityVerifier
from telepresence.runtime.mailbox import Mailbox
from telepresence.runtime.ownership import any_thread, owned_by

if TYPE_CHECKING:
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from telepresence.learning.learner import Learner
    from telepresence.runtime.frames import ProvisionalObservation, TrackedFrame, TrackedState
    from telepresence.tracking.landmark_residual import KnownSubject
    from telepresence.tracking.tracker import Tracker

log = logging.getLogger("telepresence")

NO_QUESTION: Final = "there is no question to answer: it is not in doubt whose face this is"
"""Error message for an answer that was not asked for."""
RETURN_MM: Final = 1.0
"""RMS residual in mm below which a newly calibrated face is taken for a returning earlier subject, to be verified."""


@owned_by("track")
class SubjectTracking:
    """Data of one subject that the tracking thread owns; other threads may read the attributes, replaced as a whole.

    Attributes:
        state: newest head state that may be displayed, with its camera; None before there is one in this visit.
        provisional: newest observation, with a provisional shape, from before the subject had a learner; or None.
        verifier: identity verifier, which accumulates evidence that the face still belongs to this subject.
        known: shape and calibration with which the subject can be tracked again; set when another subject takes over.
        others: subjects that this face was found to differ from since it appeared.
        compared: whether the face was compared with the subjects seen earlier.
        visit: number of times that this subject has come back after another one.
    """

    def __init__(self, verifier: IdentityVerifier, others: tuple[Subject, ...]) -> None:
        self.state: TrackedState | None = None
        self.provisional: ProvisionalObservation | None = None
        self.verifier, self.others = verifier, others
        self.known: KnownSubject | None = None
        self.compared = False
        self.visit = 0

    def begin_visit(self, others: tuple[Subject, ...]) -> None:
        """Begin a visit of a subject who may have returned: restart identity verification, clear the displayed state.

        ``others`` are the subjects that the face was found to differ from.
        """
        self.verifier, self.others = IdentityVerifier.stored(), others
        self.state = self.provisional = None
        self.visit += 1


@owned_by("train")
class SubjectLearning:
    """Data of one subject that the training thread owns: the learner, and a coloured mesh from before there was one.

    Other threads may read the attributes, which are replaced as a whole.  ``mesh`` was created in the visit with
    number ``mesh_visit``.
    """

    def __init__(self) -> None:
        self.learner: Learner | None = None
        self.mesh: ColouredMesh | None = None
        self.mesh_visit = 0


@owned_by("supervise")
class SubjectSupervision:
    """Session and learning budget of one subject, advanced by the supervisor thread.

    Other threads may read the attributes, which are replaced as a whole.  ``session`` belongs to the visit with number
    ``visit``.
    """

    def __init__(self) -> None:
        self.session = Session()
        self.budget = LearningBudget()
        self.visit = 0


class Subject:
    """One person seen by a camera: the path of the avatar, and the data that each thread owns."""

    def __init__(self, path: Path, verifier: IdentityVerifier, others: tuple[Subject, ...] = ()) -> None:
        """``path`` is the folder of the avatar; ``others`` are the subjects that this face was found to differ from."""
        self.path = path
        self.tracking = SubjectTracking(verifier, others)
        self.learning = SubjectLearning()
        self.supervision = SubjectSupervision()

    @property
    def verifier(self) -> IdentityVerifier:
        """Identity verifier: the evidence that the face still belongs to this subject."""
        return self.tracking.verifier

    @property
    def learner(self) -> Learner | None:
        """Learner of the avatar; None before the subject is calibrated, and after another subject took over."""
        return self.learning.learner

    @property
    def mesh(self) -> ColouredMesh | None:
        """Head mesh coloured from one provisional observation; None before there is one in this visit."""
        return self.learning.mesh if self.learning.mesh_visit == self.tracking.visit else None

    @property
    def session(self) -> Session:
        """Session state of this subject; a new visit starts with a new session."""
        return self.supervision.session if self.supervision.visit == self.tracking.visit else Session()

    @property
    def budget(self) -> LearningBudget:
        """Learning budget: whether the avatar is being trained, and why."""
        return self.supervision.budget


@owned_by("track")
class SubjectRegistry:
    """Decides which subject is seen by one camera, and keeps the subjects seen earlier in the call.

    Attributes:
        current: the subject that is assumed to be in front of the camera.
        away: subjects seen earlier in this call, including one whose return is being verified.
        events: events of the camera session.

    ``current`` and ``away`` are replaced as a whole, so that every thread may read them.
    """

    def __init__(self, path: Path, stored: bool, events: EventLog | None = None) -> None:
        """``path`` is the folder of the first avatar; if it is ``stored`` there, the first face is verified."""
        self.current = Subject(path, IdentityVerifier.stored() if stored else IdentityVerifier())
        self.away: tuple[Subject, ...] = ()
        self.events = events if events is not None else EventLog()
        self._first = path
        self._answer: Mailbox[bool] = Mailbox("identity answer")

    @property
    @any_thread
    def asked(self) -> bool:
        """Whether the user is being asked if the face belongs to the subject of the avatar."""
        return self.current.verifier.status is IdentityStatus.ASKING

    @any_thread
    def answer(self, same: bool) -> None:
        """Answer whether the face belongs to the avatar's subject (``same``).  UserError if that is not being asked."""
        if not self.asked:
            raise UserError(NO_QUESTION)
        self._answer.put(same)

    def identify(self, tracker: Tracker, tracked: TrackedFrame, now: float) -> Subject | None:
        """The subject of ``tracked`` at monotonic second ``now``; None if another subject takes over, so that the frame
        must not be used."""
        subject = self.current
        tracking = subject.tracking
        if tracked.residual is not None and not tracking.compared:
            tracking.compared = True
            if self._returns(tracker, subject):
                return None
            tracking.others = ()
            if tracking.known is None and self.away:
                self.events.add(
                    EventKind.NEW_AVATAR, f"another person is there: a new avatar was begun, {subject.path}"
                )
        learner, seen = subject.learner, tracked.tracked_state
        evidence = IdentityEvidence(
            tracked.residual,
            seen.state.translation if seen is not None else None,
            learner.worse_db if learner is not None else None,
            self._answer.get(0.0),
        )
        before, tracking.verifier = tracking.verifier, tracking.verifier.after(evidence, now)
        status = tracking.verifier.status
        if status is not before.status:
            self._report(subject, status, evidence)
        if status is IdentityStatus.OTHER:
            self._begin(tracker, subject)
            return None
        tracker.may_adapt = tracking.verifier.confirmed
        return subject

    def _begin(self, tracker: Tracker, before: Subject) -> None:
        """Start a new subject in place of ``before``, who is kept in ``away``."""
        from telepresence.tracking.landmark_residual import KnownSubject

        if tracker.shape is not None:
            before.tracking.known = KnownSubject(tracker.shape, tracker.calibration)
        self.away = (*(each for each in self.away if each is not before), before)
        subject = Subject(self._unused_path(), IdentityVerifier(), (*before.tracking.others, before))
        tracker.recalibrate()
        tracker.may_adapt = True
        self.current = subject

    def _returns(self, tracker: Tracker, subject: Subject) -> bool:
        """Whether ``subject``, just calibrated, resembles one of ``away``, who then becomes current."""
        nearest, least = None, RETURN_MM
        for each in self.away:
            if each in subject.tracking.others or each.tracking.known is None:
                continue
            residual = tracker.residual_of(each.tracking.known)
            mm = float(np.sqrt(np.square(residual).sum(1).mean())) if residual is not None else np.inf
            if mm < least:
                nearest, least = each, mm
        if nearest is None:
            return False
        nearest.tracking.begin_visit(subject.tracking.others)
        tracker.recalibrate(nearest.tracking.known)
        tracker.may_adapt = False
        self.current = nearest
        return True

    def _unused_path(self) -> Path:
        """Path beside that of the first avatar, of a folder that does not exist and belongs to no subject."""
        taken = {each.path for each in (*self.away, self.current)}
        number = 2
        while (path := self._first.with_name(f"{self._first.name}-{number}")).exists() or path in taken:
            number += 1
        return path

    def _report(self, subject: Subject, status: IdentityStatus, evidence: IdentityEvidence) -> None:
        """Log a change of the identity status, and apply its consequences to ``away``."""
        mm, worse = subject.verifier.residual_mm, evidence.worse_db
        log.info(
            "the face is %s (residual %s mm, %s dB worse than usual)",
            status,
            "?" if mm is None else f"{mm:.2f}",
            "?" if worse is None else f"{worse:.1f}",
            extra={"event": "identity", "stage": "track", "fields": {"status": status, "residual_mm": mm}},
        )
        if status is IdentityStatus.KNOWN:
            subject.tracking.others = ()
        if status is IdentityStatus.ASKING:
            self.events.add(EventKind.QUESTION, "it is not certain whose face this is: learning waits for an answer")
        elif status is IdentityStatus.KNOWN and subject in self.away:
            self.away = tuple(each for each in self.away if each is not subject)
            self.events.add(EventKind.PERSON_BACK, f"an earlier subject is back: learning goes on with {subject.path}")

"""The course of a call: how the session of whoever is there stands, and whether they are learned now."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from telepresence.call.session import Facts, State
from telepresence.learning.budget import Wants
from telepresence.runtime.policy import Condition

if TYPE_CHECKING:
    from telepresence.call.camera_session import Person
    from telepresence.call.driver_selection import Driving
    from telepresence.runtime.policy import Health

log = logging.getLogger("telepresence")

NO_FACE_S: Final = 10.0
"""Seconds without any face after which `/status` says so."""


class Course:
    """Advances session and budget of a person, from what camera, tracker, drivers and training say of themselves.

    Belongs to the supervisor.
    """

    def __init__(self, driving: Driving, note: Callable[[str, str | None], None]) -> None:
        """``note(where, text)`` hears what goes wrong, and None once it works again."""
        self._driving, self._note = driving, note

    def advance(self, person: Person, training: Health, now: float) -> None:
        """Bring ``person`` up to ``now`` (monotonic seconds).  ``training`` is how the training thread is."""
        sitter = person.sitter
        before = sitter.session.state
        sitter.session = sitter.session.advance(self._facts(person), now)
        if sitter.session.state is not before:
            fields = {"from": before, "to": sitter.session.state}
            log.info("%s -> %s", before, sitter.session.state, extra={"event": "state", "fields": fields})
        self._allot(person, training, now)
        self._watch_for_faces(person, now)

    def _facts(self, person: Person) -> Facts:
        driven = self._driving.decide()
        learner = person.learner
        score = learner.score if learner is not None else None
        return Facts(
            face=person.face(),
            calibrated=learner is not None,
            gain_db=score.gain_db if score is not None else None,
            likeness_db=score.avatar_db if score is not None and learner is not None and not learner.loaded else None,
            driven=learner is not None and driven,
        )

    def _allot(self, person: Person, training: Health, now: float) -> None:
        """Decide whether ``person`` is learned now."""
        learner = person.learner
        score = learner.score if learner is not None else None
        wants = Wants(
            known=learner is not None,
            away=person.session.state in (State.WAITING, State.IDLE),
            news=learner.gate.news if learner is not None else None,
            likeness_db=score.avatar_db if score is not None else None,
            frozen=learner is not None and not learner.learns,
            failure=training.error if training.condition in (Condition.FAILED, Condition.HUNG) else None,
        )
        sitter = person.sitter
        before = sitter.budget
        sitter.budget = budget = before.after(wants, now)
        if budget.mode is not before.mode:
            log.info(
                "training: %s (%s)",
                budget.mode,
                budget.why,
                extra={"event": "training", "stage": "train", "fields": {"mode": budget.mode}},
            )

    def _watch_for_faces(self, person: Person, now: float) -> None:
        if person.session.state is not State.WAITING:
            self._note("face", None)
        elif person.seen and now - person.began > NO_FACE_S:
            person.began = now
            self._note("face", f"no face was found in the pictures of {person.name} so far")

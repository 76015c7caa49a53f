"""Controller that advances the session and the learning budget of the current subject."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from telepresence.call.session import Facts, SessionState
from telepresence.learning.budget import BudgetInputs
from telepresence.runtime.failure_policy import Condition
from telepresence.runtime.ownership import owned_by

if TYPE_CHECKING:
    from telepresence.call.camera_session import CameraSession
    from telepresence.call.driver_selection import DriverSelector
    from telepresence.runtime.failure_policy import Health
    from telepresence.runtime.telemetry import Telemetry

log = logging.getLogger("telepresence")

NO_FACE_S: Final = 10.0
"""Seconds without any face after which `/status` reports that no face was found."""


@owned_by("supervise")
class SessionController:
    """Advances session and learning budget of the current subject from the state of camera, drivers and training."""

    def __init__(self, drivers: DriverSelector, telemetry: Telemetry) -> None:
        """``telemetry`` receives the report that no face was found."""
        self._drivers, self._telemetry = drivers, telemetry
        self._camera: CameraSession | None = None  # the session that `_faceless_since` is about
        self._faceless_since = 0.0  # when the wait for a first face began

    def advance(self, camera: CameraSession, training: Health, now: float) -> None:
        """Advance the subject of ``camera`` to monotonic second ``now``, given the health of the training stage."""
        subject = camera.subject
        part, visit = subject.supervision, subject.tracking.visit
        before = subject.session
        part.session = before.advance(self._facts(camera), now)
        part.visit = visit
        if part.session.state is not before.state:
            fields = {"from": before.state, "to": part.session.state}
            log.info("%s -> %s", before.state, part.session.state, extra={"event": "state", "fields": fields})
        self._update_budget(camera, training, now)
        self._report_missing_face(camera, now)

    def _facts(self, camera: CameraSession) -> Facts:
        learner = camera.learner
        score = learner.score if learner is not None else None
        return Facts(
            face=camera.has_face,
            calibrated=learner is not None,
            gain_db=score.gain_db if score is not None else None,
            likeness_db=score.avatar_db if score is not None and learner is not None and not learner.loaded else None,
            driven=learner is not None and self._drivers.receiving,
        )

    def _update_budget(self, camera: CameraSession, training: Health, now: float) -> None:
        """Decide whether the current subject is learned now."""
        learner = camera.learner
        score = learner.score if learner is not None else None
        inputs = BudgetInputs(
            has_avatar=learner is not None,
            absent=camera.session.state in (SessionState.WAITING, SessionState.IDLE),
            last_novel_at=learner.frame_filter.last_novel_at if learner is not None else None,
            likeness_db=score.avatar_db if score is not None else None,
            frozen=learner is not None and not learner.learns,
            failure=training.error if training.condition in (Condition.FAILED, Condition.HUNG) else None,
        )
        part = camera.subject.supervision
        before = part.budget
        part.budget = budget = before.after(inputs, now)
        if budget.mode is not before.mode:
            log.info(
                "training: %s (%s)",
                budget.mode,
                budget.reason,
                extra={"event": "training", "stage": "train", "fields": {"mode": budget.mode}},
            )

    def _report_missing_face(self, camera: CameraSession, now: float) -> None:
        """Report a camera that sends frames in which no face was ever found."""
        if camera is not self._camera:
            self._camera, self._faceless_since = camera, now
        if camera.session.state is not SessionState.WAITING:
            self._telemetry.report("face", None)
        elif camera.reader.status.has_frames and now - self._faceless_since > NO_FACE_S:
            self._faceless_since = now
            self._telemetry.report("face", f"no face was found in the frames of {camera.name} so far")

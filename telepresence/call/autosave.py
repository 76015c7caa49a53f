"""Periodic saving of avatars during a call, and reporting of training events."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from insta_runtime.errors import UserError
from telepresence.call.event_log import EventKind
from telepresence.runtime.failure_policy import one_line
from telepresence.runtime.ownership import any_thread, owned_by

if TYPE_CHECKING:
    from telepresence.call.camera_session import CameraSession
    from telepresence.call.subjects import Subject
    from telepresence.runtime.telemetry import Telemetry

log = logging.getLogger("telepresence")


@owned_by("train")
class AvatarAutosave:
    """Saves avatars during a call; if a save fails, the previously saved file stays and the call goes on.

    Attributes:
        error: error message of the latest save; None if it succeeded, or if nothing was saved yet.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        """``telemetry`` receives save errors and training events."""
        self.error: str | None = None
        self._telemetry = telemetry

    def update(self, camera: CameraSession) -> None:
        """Start a background save of the avatar if one is due, and report training events since the last call."""
        learner = camera.learner
        if learner is None:
            return
        learner.autosave(time.monotonic())
        for event in learner.take_events():
            camera.events.add(EventKind(event.kind.value), event.text, "train")
        while learner.appearance_changes:
            change = learner.appearance_changes.popleft()
            camera.events.add(EventKind.APPEARANCE, f"the {change} changed: earlier frames fade", "train")
        if learner.save_error != self.error:
            self.error = learner.save_error
            self._telemetry.report("avatar", self.error)

    @any_thread
    def save(self, subject: Subject) -> None:
        """Save the avatar of ``subject``, if it has a learner, and wait until the file is written.

        Never raises: after an error the previously saved file stays, and `error` is set.
        The supervisor and the main thread call this only when the training thread no longer uses the subject.
        """
        try:
            if subject.learner is not None and subject.learner.save():
                log.info("avatar saved: %s", subject.path, extra={"event": "avatar_saved"})
            self._telemetry.report("avatar", None)
            self.error = None
        except Exception as error:  # a lost GPU raises anything; avatars of other subjects are saved all the same
            text = str(error) if isinstance(error, UserError) else f"it cannot be saved: {one_line(error)}"
            self._telemetry.report("avatar", text)
            self.error = text

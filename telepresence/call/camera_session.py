"""Session of one camera: its source, its tracker, and the subjects it has seen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from telepresence.call.camera_reader import CameraReader
from telepresence.call.event_log import EventKind, EventLog
from telepresence.call.subjects import Subject, SubjectRegistry
from telepresence.runtime.frames import CameraFrame, ProvisionalObservation, TrackedFrame, TrackedState
from telepresence.runtime.ownership import any_thread, owned_by

if TYPE_CHECKING:
    from telepresence.call.session import Session
    from telepresence.learning.budget import LearningBudget
    from telepresence.learning.learner import Learner
    from telepresence.runtime.telemetry import Telemetry
    from telepresence.sources import Source
    from telepresence.tracking.calibration import Calibration
    from telepresence.tracking.tracker import Tracker


@owned_by("track")
class CameraTracking:
    """Tracks the frames of one camera, identifies the subject, and passes observations to the subject's learner.

    Attributes:
        tracker: the tracker; other threads may read its state, shape and calibration.
        subjects: the subjects seen by the camera.
        newest: the newest tracked frame; replaced whole, so that every thread may read it.
    """

    def __init__(
        self, tracker: Tracker, new_tracker: Callable[[Calibration | None], Tracker], subjects: SubjectRegistry
    ) -> None:
        """Takes ownership of ``tracker``; ``new_tracker`` creates a replacement from a calibration or None."""
        self.tracker, self.subjects = tracker, subjects
        self.newest: TrackedFrame | None = None
        self._new_tracker = new_tracker
        self._recalibrate = threading.Event()

    @any_thread
    def recalibrate(self) -> None:
        """Request a new calibration of the current subject, which starts with the next frame."""
        self._recalibrate.set()

    def track(self, frame: CameraFrame, on_state: Callable[[TrackedState], None]) -> TrackedFrame:
        """Track one frame, after restarting calibration if `recalibrate` was called.

        ``on_state`` is called with the head state before the matte is computed, unless the identity of the face is
        in doubt.  A subject that is calibrated again keeps the identity code.
        """
        from telepresence.tracking.landmark_residual import KnownSubject

        tracker = self.tracker
        if self._recalibrate.is_set() and tracker.shape is not None:
            self._recalibrate.clear()
            before = tracker.calibration
            tracker.recalibrate(KnownSubject(tracker.shape, before and replace(before, width=0, height=0)))
            self.subjects.events.add(EventKind.CALIBRATION, "the face is calibrated anew")

        def display(state: TrackedState) -> None:
            subject = self.subjects.current
            if subject.verifier.may_drive:
                subject.tracking.state = state
                on_state(state)

        return tracker.track(frame, display)

    def update(self, tracked: TrackedFrame, now: float) -> None:
        """Identify the subject of ``tracked`` at monotonic second ``now``, and pass the observation to the learner."""
        self.newest = tracked
        subject = self.subjects.identify(self.tracker, tracked, now)
        if subject is None:
            return
        observation, provisional, shape = tracked.observation, tracked.provisional, self.tracker.shape
        learner, verifier = subject.learner, subject.verifier
        if learner is not None and observation is not None:
            if verifier.confirmed:
                learner.add_observation(observation, now)
            else:
                learner.add_unverified(observation)
        if not verifier.may_drive:
            return
        if provisional is None and observation is not None and shape is not None and learner is None:
            provisional = ProvisionalObservation(observation, shape)
        if provisional is not None:
            subject.tracking.provisional = provisional
        state = tracked.tracked_state
        if state is None and provisional is not None:
            state = TrackedState(provisional.observation.state, provisional.observation.camera)
        if state is not None:
            subject.tracking.state = state

    def renew_tracker(self) -> None:
        """Replace the tracker, after an error, by a new one with the same calibration."""
        before = self.tracker
        self.tracker = self._new_tracker(before.calibration)
        before.close()

    @any_thread
    def close(self) -> None:
        """Release the tracker; call it only when the tracking thread no longer uses it."""
        self.tracker.close()


class CameraSession:
    """One camera source with its tracker and the subjects seen by it.

    `reader` and `tracking` belong to one thread each; every thread may read the properties.

    Attributes:
        name: name of the source, as given by ``--source``.
        reader: reads the frames (thread ``capture``).
        tracking: tracks the frames and identifies the subject (thread ``track``).
        events: events of this camera session, for `/status`.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        reopen: Callable[[], Source],
        tracker: Tracker,
        new_tracker: Callable[[Calibration | None], Tracker],
        path: Path,
        telemetry: Telemetry,
        stored: bool = False,
    ) -> None:
        """Takes ownership of ``source`` and ``tracker``.

        ``reopen`` opens the camera again after a failure, and ``new_tracker`` creates a tracker with a given
        calibration.  ``path`` is the avatar's folder; ``stored`` means that it holds an avatar, so that the first face
        is verified.  ``telemetry`` receives the camera's failures.
        """
        self.name = name
        self.events = EventLog()
        self.reader = CameraReader(name, source, reopen, telemetry)
        self.tracking = CameraTracking(tracker, new_tracker, SubjectRegistry(path, stored, self.events))

    @property
    def subjects(self) -> SubjectRegistry:
        """The subjects seen by the camera."""
        return self.tracking.subjects

    @property
    def tracker(self) -> Tracker:
        """The tracker in use."""
        return self.tracking.tracker

    @property
    def subject(self) -> Subject:
        """The subject that is assumed to be in front of the camera now."""
        return self.subjects.current

    @property
    def path(self) -> Path:
        """Folder of the current subject's avatar."""
        return self.subject.path

    @property
    def learner(self) -> Learner | None:
        """Learner of the current subject; None until one is created, after calibration."""
        return self.subject.learner

    @property
    def session(self) -> Session:
        """Session state of the current subject: waiting, calibrating, learning, live, lost or idle."""
        return self.subject.session

    @property
    def budget(self) -> LearningBudget:
        """Learning budget of the current subject: whether its avatar is being trained, and why."""
        return self.subject.budget

    @property
    def has_face(self) -> bool:
        """Whether the newest tracked frame shows the current subject's face, or the tracker is calibrating.

        False if the camera has stopped sending frames, or if the identity of the face is in doubt.
        """
        tracked, camera = self.tracking.newest, self.reader.status
        if tracked is None or not camera.has_frames or camera.silent:
            return False
        if not self.subject.verifier.may_drive:
            return False  # perhaps it is the face of another person
        return tracked.tracked_state is not None or self.tracker.state == "calibrating"

    def close(self) -> None:
        """Release the camera and the tracker; call it only when no thread uses them any more."""
        self.reader.close()
        self.tracking.close()

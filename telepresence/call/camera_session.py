"""One camera source, its tracker, and the subjects seen by it."""

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
    """Tracks the frames of one camera, identifies the subject, and offers observations to the subject's learner.

    Attributes:
        tracker: the tracker; other threads may read its state, shape and calibration.
        subjects: the subjects seen by the camera.
        newest: the newest tracked frame; replaced whole, so that every thread may read it.
    """

    def __init__(
        self, tracker: Tracker, new_tracker: Callable[[Calibration | None], Tracker], subjects: SubjectRegistry
    ) -> None:
        """Takes over ``tracker``; ``new_tracker`` makes another one for a subject with that calibration."""
        self.tracker, self.subjects = tracker, subjects
        self.newest: TrackedFrame | None = None
        self._new_tracker = new_tracker
        self._recalibrate = threading.Event()

    @any_thread
    def recalibrate(self) -> None:
        """Calibrate the current subject again, from the next frame on."""
        self._recalibrate.set()

    def track(self, frame: CameraFrame, on_state: Callable[[TrackedState], None]) -> TrackedFrame:
        """Track one frame; ``on_state`` gets the head state before the matte is computed, if it may be displayed.

        A subject that is calibrated again keeps its identity.
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
        """Identify the subject of ``tracked`` at second ``now``, and offer the observation to the subject's learner."""
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
        """Replace the tracker by a new one with the same calibration; a tracker does not recover from every error."""
        before = self.tracker
        self.tracker = self._new_tracker(before.calibration)
        before.close()

    @any_thread
    def close(self) -> None:
        """Release the tracker, once the tracking thread no longer uses it."""
        self.tracker.close()


class CameraSession:
    """One camera source with its tracker and the subjects seen by it: a part for each thread, and reads for all.

    Attributes:
        name: name of the source, as given by ``--source``.
        reader: reads the frames (thread ``capture``).
        tracking: tracks them and identifies the subject (thread ``track``).
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
        """Takes over ``source`` and ``tracker``; the avatar's folder is ``path``, which exists if it is ``stored``.

        ``reopen`` opens the camera again after a failure, ``new_tracker`` makes a tracker for that calibration, and
        ``telemetry`` gets the camera's failures.
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
        """The subject that is taken to be before the camera now."""
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
        """State of the call for the current subject."""
        return self.subject.session

    @property
    def budget(self) -> LearningBudget:
        """Learning budget of the current subject."""
        return self.subject.budget

    @property
    def has_face(self) -> bool:
        """Whether the current subject's face is before the camera, as far as is known.

        The newest tracked frame decides, even if a busy tracker has no newer one; a silent camera shows no face.
        """
        tracked, camera = self.tracking.newest, self.reader.status
        if tracked is None or not camera.has_frames or camera.silent:
            return False
        if not self.subject.verifier.may_drive:
            return False  # perhaps it is the face of another person
        return tracked.tracked_state is not None or self.tracker.state == "calibrating"

    def close(self) -> None:
        """Release the camera and the tracker, once no thread uses them."""
        self.reader.close()
        self.tracking.close()

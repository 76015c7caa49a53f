"""One person before one camera: the source, the tracker, what is being learned, and how the session stands."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from insta_runtime.errors import UserError
from telepresence.call.subjects import Sitter, Sitters
from telepresence.runtime.clock import CaptureClock, now_ns
from telepresence.runtime.frames import CameraFrame, Glimpse, Pose, TrackedFrame
from telepresence.runtime.policy import POLICIES, Condition, Health, one_line

if TYPE_CHECKING:
    from insta_runtime.avatar import Avatar
    from insta_runtime.head import HeadModel
    from telepresence.call.session import Session
    from telepresence.learning.budget import Budget
    from telepresence.learning.learner import Learner
    from telepresence.sources import Identity, Source
    from telepresence.tracking.calibration import Calibration
    from telepresence.tracking.crop import CropPolicy
    from telepresence.tracking.tracker import Tracker

log = logging.getLogger("telepresence")

CAMERA: Final = POLICIES["camera"]
SILENT_NS: Final = 1_000_000_000
"""A camera that gave no picture for so long gives none."""


class Person:
    """Belongs to the daemon; every thread touches only its own part.

    Capture calls `read`, tracking `notice`; ``sitters`` are those who were before the camera, and say which thread
    sets what of them.  ``trouble`` is the line that says why the camera gives no pictures, ``seen`` whether it ever
    did.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        reopen: Callable[[], Source],
        tracker: Tracker,
        path: Path,
        report: Callable[[str | None], None],
        retrack: Callable[[Calibration | None], Tracker],
        stored: bool = False,
    ) -> None:
        """Takes over ``source`` and ``tracker``; the avatar belongs at ``path``, and is ``stored`` there or begins.

        ``reopen`` opens the camera again after it failed, ``retrack`` makes the tracker anew for somebody with this
        calibration; ``report`` hears of the camera's failures, and None once it works.
        """
        self.name, self.tracker = name, tracker
        self.sitters = Sitters(path, stored)
        self.began = time.monotonic()
        self.tracked: TrackedFrame | None = None
        self.seen = False
        self.trouble: str | None = None
        self._source: Source | None = source
        self._reopen, self._report, self._retrack = reopen, report, retrack
        self._retry_at = 0.0
        self._read_ns = self._asked_ns = self._silent_ns = now_ns()
        self._reopened = 0
        self._lost: str | None = None  # why the camera was lost last
        self._clock = CaptureClock()
        self._anew = threading.Event()  # somebody asked for a calibration

    @property
    def sitter(self) -> Sitter:
        """Who is taken to be before the camera now."""
        return self.sitters.current

    @property
    def path(self) -> Path:
        return self.sitter.path

    @property
    def learner(self) -> Learner | None:
        return self.sitter.learner

    @property
    def pose(self) -> Pose | None:
        return self.sitter.pose

    @property
    def session(self) -> Session:
        return self.sitter.session

    @property
    def budget(self) -> Budget:
        return self.sitter.budget

    def read(self, timeout: float) -> CameraFrame | None:
        """The next camera frame; a camera that fails or falls silent is reported and opened again until it works."""
        if now_ns() - self._asked_ns > SILENT_NS:  # somebody else's camera was used
            self._silent_ns = now_ns()
        self._asked_ns = now_ns()
        try:
            if self._source is None:
                if time.monotonic() < self._retry_at:
                    time.sleep(min(timeout, 0.1))
                    return None
                self._source = self._reopen()
                self._reopened += 1
                self._silent_ns = now_ns()
            frame = self._source.read(timeout)
        except (UserError, OSError) as error:
            self._lose(str(error) or one_line(error))
            return None
        if frame is None:
            # A browser's camera may be taken away without a word: that is no fault.
            if self.name != "browser" and self._silent_s() > CAMERA.silent_s:
                self._lose(f"{self.name} has sent no picture for {self._silent_s():.0f} s; it is opened again")
            return None
        self._read_ns = self._silent_ns = now_ns()
        if self.trouble is not None:
            self.trouble = None
            self._report(None)
            log.info("%s sends pictures again", self.name, extra={"event": "camera_back", "stage": "capture"})
        self.seen = True
        return self._timed(frame)

    def camera(self) -> Health:
        """How the camera is."""
        condition = Condition.RUNNING if self.trouble is None else Condition.RESTARTING
        return Health(condition, self._silent_s(), self._reopened, self._lost)

    @property
    def wrong_times(self) -> int:
        """How many pictures had a capture time that cannot be."""
        return self._clock.wrong

    def recalibrate(self) -> None:
        """Calibrate anew at the next picture; any thread."""
        self._anew.set()

    def track(self, frame: CameraFrame, told: Callable[[Pose], None]) -> TrackedFrame:
        """Track one picture; ``told`` hears the pose of whoever is to be shown as soon as there is one.

        Whoever is calibrated anew stays who they are, as if before another camera.
        """
        from telepresence.tracking.proportions import Known

        tracker = self.tracker
        if self._anew.is_set() and tracker.shape is not None:
            self._anew.clear()
            before = tracker.calibration
            tracker.recalibrate(Known(tracker.shape, before and replace(before, width=0, height=0)))
            self.sitters.note("calibration", "the face is calibrated anew")

        def shown(pose: Pose) -> None:
            if self.sitter.acquaintance.shows:
                self.sitter.pose = pose
                told(pose)

        return tracker.track(frame, shown)

    def notice(self, tracked: TrackedFrame, now: float) -> None:
        """Take over what tracking made of a frame: the pose, and a glimpse of somebody who is not yet learned.

        Whether it is still the same face is decided here; what is known to be theirs is offered to be learned.
        """
        self.tracked = tracked
        sitter = self.sitters.meet(self.tracker, tracked, now)
        if sitter is None:
            return
        observation, glimpse, shape = tracked.observation, tracked.glimpse, self.tracker.shape
        learner, who = sitter.learner, sitter.acquaintance
        if learner is not None and observation is not None:
            if who.settled:
                learner.offer(observation, now)
            else:
                learner.consider(observation)
        if not who.shows:
            return
        if glimpse is None and observation is not None and shape is not None and learner is None:
            glimpse = Glimpse(observation, shape)
        if glimpse is not None:
            sitter.glimpse = glimpse
        pose = tracked.pose
        if pose is None and glimpse is not None:
            pose = Pose(glimpse.observation.state, glimpse.observation.camera)
        if pose is not None:
            sitter.pose = pose

    def renew_tracker(self) -> None:
        """Track with a new tracker that knows of the person what this one knew; on the tracking thread."""
        before = self.tracker
        self.tracker = self._retrack(before.calibration)
        before.close()

    def face(self) -> bool:
        """Whether a face is there, as far as is known.

        The newest tracked frame decides, even while a busy tracker (it calibrates, say) has no newer one; but a
        camera that gives no pictures shows no face.
        """
        tracked = self.tracked
        if tracked is None or not self.seen or now_ns() - self._read_ns > SILENT_NS:
            return False
        if not self.sitter.acquaintance.shows:
            return False  # of the person; whoever else is there
        return tracked.pose is not None or self.tracker.state == "calibrating"

    def close(self) -> None:
        """Release the camera and the tracker."""
        if self._source is not None:
            self._source.close()
        self.tracker.close()

    def _silent_s(self) -> float:
        return (now_ns() - self._silent_ns) / 1e9

    def _timed(self, frame: CameraFrame) -> CameraFrame:
        wrong = self._clock.wrong
        stamp = self._clock.stamp(frame.t_capture_ns, self._read_ns)
        if self._clock.wrong == wrong:
            return frame
        if wrong == 0:
            log.warning(
                "%s tells times that cannot be; pictures get the time at which they come",
                self.name,
                extra={"event": "capture_clock", "stage": "capture"},
            )
        return replace(frame, t_capture_ns=stamp)

    def _lose(self, text: str) -> None:
        self.trouble = self._lost = text
        self._report(text)
        if self._source is not None:
            self._source.close()
            self._source = None
        self._retry_at = time.monotonic() + CAMERA.pauses[-1]


def new_avatar_path() -> Path:
    """Where an avatar goes that was given no place: the user's data folder, by date and time."""
    from platformdirs import user_data_path

    folder = user_data_path("telepresence") / "avatars"
    path = folder / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return path if not path.exists() else path.with_name(f"{path.name}_{os.getpid()}")


def stored_avatar(path: Path, head: HeadModel, device: str) -> Avatar | None:
    """The avatar at ``path``, None if there is none yet.  UserError if something else is there."""
    from insta_runtime.avatar import Avatar, is_stored

    if is_stored(path):
        return Avatar.load(path, head, device)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is no avatar: name a folder, new or one that a call has saved")
    return None


def make_tracker(
    head: HeadModel,
    known: Identity | None,
    calibration: Calibration | None,
    crop: CropPolicy,
    size: int,
    models: Path | None,
) -> Tracker:
    """The real tracker, or what the source knows itself of who is before it, if that is of the same ``head``.

    The tracker starts from the ``calibration`` of an earlier call, if there is one.  UserError if MediaPipe or its
    model files (in ``models``) are not to be had.
    """
    from telepresence.tracking.calibration import Calibration
    from telepresence.tracking.tracker import FaceTracker, TruthTracker

    if known is not None and known.head_sha256 == head.sha256:
        told = Calibration.from_json(known.calibration) if known.calibration is not None else None
        return TruthTracker(head, known.shape, size=size, calibration=told)
    return FaceTracker(head, size=size, crop=crop, models=models, calibration=calibration)


def stored_calibration(avatar: Avatar | None) -> Calibration | None:
    """What was known of the person and the camera when ``avatar`` was saved."""
    from telepresence.tracking.calibration import Calibration

    known = avatar.calibration if avatar is not None else None
    return Calibration.from_json(json.dumps(known)) if known is not None else None

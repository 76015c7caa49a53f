"""Camera sessions of a call: the home camera (``--source``), and a guest camera lent by a browser."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from insta_runtime.avatar import Avatar
from insta_runtime.errors import UserError
from telepresence.call.avatar_store import new_avatar_path, stored_avatar, stored_calibration
from telepresence.call.camera_session import CameraSession
from telepresence.call.tracker_factory import make_tracker
from telepresence.runtime.mailbox import Mailbox
from telepresence.runtime.ownership import any_thread, owned_by
from telepresence.sources import GroundTruthSource, Source, open_source
from telepresence.tracking.face_models import FaceModels
from telepresence.tracking.landmark_residual import KnownSubject

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from telepresence.call.autosave import AvatarAutosave
    from telepresence.call.call_options import CallOptions
    from telepresence.call.learners import LearnerManager
    from telepresence.config import Config
    from telepresence.runtime.audio import AudioBus
    from telepresence.runtime.frames import CameraFrame
    from telepresence.runtime.telemetry import Telemetry
    from telepresence.sources import SourceIdentity
    from telepresence.tracking.calibration import Calibration
    from telepresence.tracking.crop import CropPolicy
    from telepresence.tracking.tracker import Tracker

log = logging.getLogger("telepresence")

RESUME_S: Final = 10.0
"""Seconds for which the session of a disconnected browser camera stays open, in case the browser reconnects."""


@dataclass(frozen=True)
class OpenCameras:
    """The camera sessions at one moment.

    Attributes:
        home: the camera given by ``--source``.
        guest: the camera that a browser sends now; None if no browser does.
        leaving: a browser camera that has ended and may reconnect, with the monotonic second of its end; or None.
        current: the camera in use, ``guest`` or ``home``; None before the start and after the end of the call.
    """

    home: CameraSession | None = None
    guest: CameraSession | None = None
    leaving: tuple[CameraSession, float] | None = None
    current: CameraSession | None = None

    @property
    def all(self) -> tuple[CameraSession, ...]:
        """Every open camera session: home, guest and leaving."""
        sessions = (self.home, self.guest, self.leaving[0] if self.leaving is not None else None)
        return tuple(each for each in sessions if each is not None)


@owned_by("supervise")
class CameraManager:
    """Opens, switches and closes the camera sessions of a call.

    Other threads read `cameras`, an immutable snapshot that is replaced as a whole.  `set_browser_camera` takes effect
    at the supervisor's next `update`.
    """

    def __init__(
        self,
        config: Config,
        options: CallOptions,
        head: HeadModel,
        *,
        browser: Mailbox[CameraFrame],
        audio: AudioBus,
        telemetry: Telemetry,
        autosave: AvatarAutosave,
        learners: LearnerManager,
        open_home_source: Callable[[], Source] | None = None,
    ) -> None:
        """``browser`` is the mailbox of a browser's frames, ``audio`` the bus that receives the audio of a source.

        ``open_home_source`` opens the home camera; None opens ``options.source``.
        """
        self._cameras = OpenCameras()
        self._config, self._options, self._head, self._browser = config, options, head, browser
        self._telemetry, self._autosave, self._learners = telemetry, autosave, learners
        self._open_home_source = open_home_source or partial(
            open_source,
            options.source,
            browser=browser,
            on_audio=audio.play_source,
            on_silence=audio.report_silence,
        )
        self._lent: Mailbox[bool] = Mailbox("browser camera lent")
        self._is_lent = self._refused = False

    # ---- snapshot and commands, for any thread

    @property
    @any_thread
    def cameras(self) -> OpenCameras:
        """Immutable snapshot of the camera sessions that are open now."""
        return self._cameras

    @property
    @any_thread
    def current(self) -> CameraSession | None:
        """The camera session in use; None before the start and after the end of the call."""
        return self._cameras.current

    @any_thread
    def set_browser_camera(self, lent: bool) -> None:
        """Report that a browser has started (``lent``) or stopped sending its camera."""
        self._lent.put(lent)

    @any_thread
    def pause_learning(self, paused: bool) -> None:
        """Pause or resume learning.  UserError if the call was started without learning."""
        if not paused and self._config.run.freeze:
            raise UserError("this call was started to learn nothing: start it without --freeze")
        if not paused and self._config.run.train_share == 0.0:
            raise UserError("this call was started to learn nothing: start it with run.train_share above 0")
        if paused:
            self._learners.paused.set()
        else:
            self._learners.paused.clear()

    @any_thread
    def recalibrate(self) -> None:
        """Calibrate the current subject again.  UserError if none is calibrated yet."""
        camera = self.current
        if camera is None or camera.tracker.shape is None:
            raise UserError("there is no calibrated face yet that could be calibrated again")
        camera.tracking.recalibrate()

    @any_thread
    def check_landmarks_only(self) -> None:
        """Raise UserError if a browser may not send landmarks instead of images: there is no avatar yet."""
        cameras = self._cameras
        leaving = cameras.leaving[0] if cameras.leaving is not None else None
        home = cameras.home if self._options.source == "browser" else None
        camera = cameras.guest or leaving or home
        if camera is None or camera.learner is None:
            raise UserError("the avatar is not known yet: it is learned from images first")

    # ---- start, update and end

    def find_avatar(self) -> tuple[Path, Avatar | None]:
        """Path of the home avatar, and the stored avatar or None.  UserError if the path is another kind of file."""
        path = self._options.avatar or new_avatar_path()
        return path, stored_avatar(path, self._head, self._config.run.device)

    def open_home(self, path: Path, avatar: Avatar | None) -> None:
        """Open ``--source`` as the home camera.  UserError if it cannot be opened or tracked.

        ``avatar`` is the avatar stored at ``path``; None creates a new one there once the subject is calibrated.
        """
        session = self._open_session(self._options.source, self._open_home_source, path, avatar)
        self._cameras = replace(self._cameras, home=session)

    def use_home(self) -> None:
        """Make the home camera, opened by `open_home`, the current one."""
        self._cameras = replace(self._cameras, current=self._cameras.home)

    def update(self, now: float, finished: float) -> None:
        """Switch to the guest camera while a browser sends one, and back to the home camera when it ends.

        Both arguments are monotonic seconds.  All stages that use a camera have finished a round at or after
        ``finished``, so that a session replaced before then can be closed.
        """
        lent = self._lent.get(0.0)
        self._is_lent = self._is_lent if lent is None else lent
        cameras = self._cameras
        if cameras.home is None or self._options.source == "browser":
            return
        if self._is_lent and cameras.guest is None and not self._refused:
            guest = cameras.leaving[0] if cameras.leaving is not None else self._open_guest()
            self._cameras = replace(cameras, guest=guest, current=guest or cameras.home, leaving=None)
        elif not self._is_lent and cameras.guest is not None:
            self._cameras = replace(cameras, guest=None, current=cameras.home, leaving=(cameras.guest, now))
        elif not self._is_lent and self._refused:
            self._refused = False
            self._telemetry.report("browser camera", None)
        elif cameras.leaving is not None:
            session, since = cameras.leaving
            if now - since > RESUME_S and finished > since:
                self._cameras = replace(cameras, leaving=None)
                self._save(session)
                session.close()

    def close(self, save: bool, release: bool) -> None:
        """Close all sessions: save the avatars if ``save``, and release cameras and trackers if ``release``.

        Pass ``release`` only if no stage uses them any more.
        """
        for session in self._cameras.all:
            if save:
                self._save(session)
            if release:
                session.close()
        self._cameras = OpenCameras()

    def _save(self, session: CameraSession) -> None:
        for subject in {session.subject, *session.subjects.away}:
            self._autosave.save(subject)

    def _open_session(
        self, name: str, open_camera: Callable[[], Source], path: Path, avatar: Avatar | None
    ) -> CameraSession:
        """A session of the camera with the avatar at ``path``.  UserError if it cannot be opened or tracked."""
        source = open_camera()
        known = source.identity if isinstance(source, GroundTruthSource) and not self._options.track else None
        new_tracker = partial(self._new_tracker, known)
        try:
            tracker = new_tracker(stored_calibration(avatar))
        except UserError:
            source.close()
            raise
        stored = avatar is not None
        session = CameraSession(name, source, open_camera, tracker, new_tracker, path, self._telemetry, stored)
        if avatar is not None:
            tracker.recalibrate(KnownSubject(avatar.model.shape, stored_calibration(avatar)))
            session.subject.learning.learner = self._learners.create(avatar, path)
        return session

    def _new_tracker(self, known: SourceIdentity | None, calibration: Calibration | None) -> Tracker:
        run = self._config.run
        models = FaceModels(self._options.models, run.face_models)
        return make_tracker(self._head, known, calibration, cast("CropPolicy", run.crop), run.size, models)

    def _open_guest(self) -> CameraSession | None:
        """A session of the browser's camera with a new avatar; None if it cannot be tracked, which is reported."""
        open_camera = partial(open_source, "browser", browser=self._browser)
        try:
            guest = self._open_session("browser", open_camera, new_avatar_path(), None)
        except UserError as error:
            self._refused = True
            self._telemetry.report("browser camera", str(error))
            return None
        log.info("a browser sends its camera; its avatar will be %s", guest.path)
        return guest

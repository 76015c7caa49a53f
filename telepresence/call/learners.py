"""Creation and release of the learners of a call, one for each subject, and caching of expression statistics."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.avatar import Avatar
from insta_runtime.head import fingerprint
from telepresence.call.avatar_store import stored_avatar
from telepresence.drivers.expression_transfer import ExpressionStats
from telepresence.learning.frame_archive import FrameArchive, archive_folder
from telepresence.learning.learner import Learner
from telepresence.runtime.ownership import any_thread, owned_by

if TYPE_CHECKING:
    from pathlib import Path

    from insta_runtime.head import HeadModel
    from telepresence.call.autosave import AvatarAutosave
    from telepresence.call.camera_session import CameraSession
    from telepresence.call.subjects import Subject
    from telepresence.config import Config

CALIBRATION_S: Final = 20.0
"""Seconds between two copies of the tracker's calibration into the avatar."""
STATS_GROWTH: Final = 1.1
"""Factor of growth in the number of observed states after which expression statistics are computed again."""


@owned_by("train")
class LearnerManager:
    """Creates the learner of the current subject, and saves and releases those of subjects seen earlier.

    Attributes:
        paused: set while the user has paused learning; shared by all learners.
    """

    def __init__(self, config: Config, head: HeadModel, autosave: AvatarAutosave) -> None:
        """``autosave`` saves the avatar of a subject before its learner is released."""
        self.paused = threading.Event()
        self._config, self._head, self._autosave = config, head, autosave
        self._calibration_at = -math.inf

    @any_thread
    def create(self, avatar: Avatar, path: Path) -> Learner:
        """Create a learner that trains ``avatar`` and saves it in the folder ``path``."""
        run = self._config.run
        avatar.consent = avatar.consent or run.consent
        archive = FrameArchive(archive_folder(path), self._head, avatar.model.shape, keep=run.keep_frames)
        return Learner(
            avatar,
            path,
            freeze=run.freeze or run.train_share == 0.0,
            backend=run.backend,
            autosave_s=run.autosave_s,
            archive=archive,
            halted=self.paused,
        )

    def colour_mesh(self, camera: CameraSession) -> bool:
        """Create the subject's coloured mesh, displayed until there is a learner, from one provisional observation.

        True if a mesh was created; False if there is no observation, or already a mesh or a learner.
        """
        subject = camera.subject
        provisional, visit = subject.tracking.provisional, subject.tracking.visit
        if provisional is None or subject.mesh is not None or subject.learner is not None:
            return False
        import torch

        from insta_runtime.head import HeadRig
        from insta_runtime.render.coloured_mesh import ColouredMesh

        mesh = ColouredMesh(HeadRig(self._head, torch.device("cpu")), provisional.shape)
        mesh.observe(provisional.observation)
        mesh.colours()
        subject.learning.mesh, subject.learning.mesh_visit = None, visit
        subject.learning.mesh = mesh
        return True

    def current(self, camera: CameraSession) -> Learner | None:
        """Learner of the current subject, created if necessary; None before the subject is calibrated.

        It trains the stored avatar of a subject who has come back, otherwise a new one.  Learners of other subjects
        are saved and released.
        """
        subject = camera.subject
        for gone in camera.subjects.away:
            if gone is not subject and gone.learner is not None:
                self._autosave.save(gone)
                gone.learning.learner = None
        if subject.learner is not None:
            self._copy_calibration(camera, subject, subject.learner)
            return subject.learner
        if subject in camera.subjects.away:
            avatar = stored_avatar(subject.path, self._head, self._config.run.device)
            if avatar is not None:
                subject.learning.learner = self.create(avatar, subject.path)
            return subject.learner
        shape, state = camera.tracker.shape, subject.tracking.state
        if state is not None and shape is not None:
            avatar = Avatar.create(self._head, shape, state.camera, self._config.avatar, self._config.run.device)
            if (calibration := camera.tracker.calibration) is not None:
                avatar.calibration = json.loads(calibration.to_json())
            subject.learning.learner = self.create(avatar, subject.path)
        return subject.learner

    def _copy_calibration(self, camera: CameraSession, subject: Subject, learner: Learner) -> None:
        """Every `CALIBRATION_S` store the newest calibration with the avatar, so that it is saved with it."""
        now = time.monotonic()
        if not subject.verifier.confirmed or now - self._calibration_at < CALIBRATION_S:
            return
        self._calibration_at = now
        calibration = camera.tracker.calibration
        shape = learner.avatar.model.shape
        if calibration is not None and np.array_equal(calibration.shape, shape) and camera.subject is subject:
            learner.avatar.calibration = json.loads(calibration.to_json())


class ExpressionStatsCache:
    """Cache of the expression statistics of the avatar in use, updated as it is trained.  Safe for every thread."""

    def __init__(self, head: HeadModel) -> None:
        self._head = head
        self._lock = threading.Lock()
        self._stats: tuple[str, ExpressionStats] | None = None
        self._count = 0

    def read(self, learner: Learner | None) -> tuple[str, ExpressionStats] | None:
        """Fingerprint and expression statistics of the learner's avatar; None before any state was observed."""
        if learner is None:
            return None
        shape, seen = learner.avatar.model.shape, learner.avatar.model.code.reservoir
        avatar = fingerprint(shape)
        with self._lock:
            if self._stats is None or self._stats[0] != avatar or seen.count > STATS_GROWTH * self._count:
                if not seen.count:
                    return None
                self._stats, self._count = (avatar, ExpressionStats.of_states(seen, self._head)), seen.count
            return self._stats

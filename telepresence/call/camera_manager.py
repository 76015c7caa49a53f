"""Who is before the camera: the person at home, and guests, who lend a browser's camera."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from insta_runtime.avatar import Avatar
from insta_runtime.errors import UserError
from insta_runtime.head import fingerprint
from telepresence.call.camera_session import Person, make_tracker, new_avatar_path, stored_avatar, stored_calibration
from telepresence.call.subjects import Sitter
from telepresence.drivers.transfer import Habits
from telepresence.learning.frame_archive import Album, album_folder
from telepresence.learning.learner import Learner
from telepresence.runtime.audio import Ear
from telepresence.sources import Informed, Source, open_source
from telepresence.tracking.proportions import Known

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from telepresence.config import Config
    from telepresence.runtime.frames import CameraFrame
    from telepresence.runtime.mailbox import Mailbox
    from telepresence.sources import Identity
    from telepresence.tracking.calibration import Calibration
    from telepresence.tracking.crop import CropPolicy
    from telepresence.tracking.tracker import Tracker

log = logging.getLogger("telepresence")

CALIBRATION_S: Final = 20.0
"""Seconds between looks at what tracking knows of a person by now."""
RESUME_S: Final = 10.0
"""A browser whose connection breaks gets its avatar back if it returns within so many seconds."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of one run, besides the configuration."""

    source: str
    avatar: Path | None = None
    head: Path | None = None
    models: Path | None = None
    track: bool = False
    preview: bool = False
    record: Path | None = None
    virtual_camera: bool = False


class People:
    """Opens, swaps and sees off persons; ``current`` is the one whose camera is used now.

    `lend` is called on the network thread, `at_first_sight` and `learner` on the training thread, `usual` on that of
    every inlet and on the render thread, what a viewer may ask for on any; all else belongs to the supervisor.
    ``note`` hears what went wrong, and where; ``save`` saves an avatar.
    """

    def __init__(
        self,
        config: Config,
        options: Options,
        head: HeadModel,
        camera: Mailbox[CameraFrame],
        *,
        note: Callable[[str, str | None], None],
        save: Callable[[Sitter], None],
        hear: Ear | None = None,
        open_home: Callable[[], Source] | None = None,
    ) -> None:
        """``camera`` is where a browser's pictures arrive.  ``note(where, None)`` says that it works again.

        ``hear`` is told the sound of ``options.source``; ``open_home`` opens what takes its place.
        """
        self.home: Person | None = None  # the one from --source
        self.guest: Person | None = None  # the one before a browser's camera
        self.current: Person | None = None
        self._config, self._options, self._head, self._camera = config, options, head, camera
        self._note, self._save = note, save
        self._open_home = open_home or partial(open_source, options.source, browser=camera, hear=hear)
        self._lent = self._refused = self._halted = False
        self._leaving: tuple[Person, float] | None = None
        self._habits: tuple[str, Habits] | None = None
        self._known_states = 0
        self._remembered = -math.inf

    # ---- coming and going

    def stored(self) -> tuple[Path, Avatar | None]:
        """Where the avatar of the person at home belongs, and what is there.  UserError if that is something else."""
        path = self._options.avatar or new_avatar_path()
        return path, stored_avatar(path, self._head, self._config.run.device)

    def open_home(self, path: Path, avatar: Avatar | None) -> None:
        """Open ``--source``.  UserError if it cannot be had, or whoever is there not be tracked."""
        self.home = self._person(self._options.source, self._open_home, path, avatar)

    def begin(self) -> None:
        """The person at home is before the camera."""
        self.current = self.home

    def lend(self, started: bool) -> None:
        """A browser began or ceased to lend its camera."""
        self._lent = started

    def follow(self, now: float, rounds: float) -> None:
        """A new person while a browser's camera is lent, the one at home when it is taken back.

        Every stage has finished a round since ``rounds`` (monotonic seconds, as ``now``): whoever was swapped
        before then is touched by none.
        """
        if self.home is None or self._options.source == "browser":
            return
        if self._lent and self.guest is None and not self._refused:
            self.guest = self._leaving[0] if self._leaving is not None else self._new_guest()
            self.current, self._leaving = self.guest or self.home, None
        elif not self._lent and self.guest is not None:
            self._leaving = (self.guest, now)
            self.guest, self.current = None, self.home
        elif not self._lent and self._refused:
            self._refused = False
            self._note("browser camera", None)
        elif self._leaving is not None:
            person, since = self._leaving
            # A broken connection may bring them back.
            if now - since > RESUME_S and rounds > since:
                self._leaving = None
                for sitter in {person.sitter, *person.sitters.away}:
                    self._save(sitter)
                person.close()

    # ---- what a viewer may ask for, on any thread

    def halt(self, on: bool) -> None:
        """Learn nothing for now, or go on.  UserError if the call was never to learn."""
        if not on and (self._config.run.freeze or self._config.run.train_share == 0.0):
            raise UserError("this call was started to learn nothing: start it without --freeze")
        self._halted = on
        for person in (self.home, self.guest, self._leaving and self._leaving[0]):
            for sitter in {person.sitter, *person.sitters.away} if person is not None else ():
                if sitter.learner is not None:
                    sitter.learner.halted = on

    def recalibrate(self) -> None:
        """Get to know anew how the person sits before the camera.  UserError if there is nobody."""
        person = self.current
        if person is None or person.tracker.shape is None:
            raise UserError("nobody is known yet who could be calibrated anew")
        person.recalibrate()

    def withhold(self) -> None:
        """Raise UserError unless landmarks are enough to follow the face before a browser's camera."""
        leaving = self._leaving[0] if self._leaving is not None else None
        home = self.home if self._options.source == "browser" else None
        person = self.guest or leaving or home
        if person is None or person.learner is None:
            raise UserError("the avatar is not known yet: until it is, it is learned from pictures")

    def close(self, save: bool, release: bool) -> None:
        """``save`` everybody's avatar; ``release`` cameras and trackers too, once no stage uses them."""
        for person in (self.home, self.guest, self._leaving and self._leaving[0]):
            if person is not None:
                for sitter in {person.sitter, *person.sitters.away} if save else ():
                    self._save(sitter)
                if release:
                    person.close()
        self.home = self.guest = self._leaving = self.current = None

    # ---- what is known of them

    def at_first_sight(self, person: Person) -> bool:
        """Colour a mesh from the first picture, to be shown until something is learned.  False if that is done."""
        sitter = person.sitter
        glimpse = sitter.glimpse
        if glimpse is None or sitter.mesh is not None or sitter.learner is not None:
            return False
        import torch

        from insta_runtime.head import HeadRig
        from insta_runtime.render.coloured_mesh import ColouredMesh

        mesh = ColouredMesh(HeadRig(self._head, torch.device("cpu")), glimpse.shape)
        mesh.observe(glimpse.observation)
        mesh.colours()
        sitter.mesh = mesh
        return True

    def learner(self, person: Person) -> Learner | None:
        """The learner of whoever is there: the avatar that they have, or a new one once it is known who that is.

        Learners of those who are there no more are saved, and let go.
        """
        sitter = person.sitter
        for gone in person.sitters.away:
            if gone is not sitter and gone.learner is not None:
                self._save(gone)
                gone.learner = None
        if sitter.learner is not None:
            self._remember(person, sitter, sitter.learner)
            return sitter.learner
        if sitter in person.sitters.away:
            avatar = stored_avatar(sitter.path, self._head, self._config.run.device)
            if avatar is not None:
                sitter.learner = self._learner(avatar, sitter.path)
            return sitter.learner
        shape = person.tracker.shape
        if sitter.pose is not None and shape is not None:
            config, device = self._config.avatar, self._config.run.device
            avatar = Avatar.create(self._head, shape, sitter.pose.camera, config, device)
            if (calibration := person.tracker.calibration) is not None:
                avatar.calibration = json.loads(calibration.to_json())
            sitter.learner = self._learner(avatar, sitter.path)
        return sitter.learner

    def _remember(self, person: Person, sitter: Sitter, learner: Learner) -> None:
        """Save with the avatar, now and then, what tracking has learned of its person since."""
        now = time.monotonic()
        if not sitter.acquaintance.settled or now - self._remembered < CALIBRATION_S:
            return
        self._remembered = now
        calibration = person.tracker.calibration
        shape = learner.avatar.model.shape
        if calibration is not None and np.array_equal(calibration.shape, shape) and person.sitter is sitter:
            learner.avatar.calibration = json.loads(calibration.to_json())

    def usual(self) -> tuple[str, Habits] | None:
        """Whose avatar there is and what is usual for them."""
        person = self.current
        learner = person.learner if person is not None else None
        if learner is None:
            return None
        shape, seen = learner.avatar.model.shape, learner.avatar.model.code.repertoire
        who = fingerprint(shape)
        if self._habits is None or self._habits[0] != who or seen.count > 1.1 * self._known_states:
            if not seen.count:
                return None
            self._habits, self._known_states = (who, Habits.of(seen, self._head)), seen.count
        return self._habits

    def _person(self, name: str, camera: Callable[[], Source], path: Path, avatar: Avatar | None) -> Person:
        """Whoever is before ``camera``; their avatar belongs at ``path``.  UserError if they cannot be tracked."""
        source = camera()
        known = source.identity if isinstance(source, Informed) and not self._options.track else None
        retrack = partial(self._tracker, known)
        try:
            tracker = retrack(stored_calibration(avatar))
        except UserError:
            source.close()
            raise
        stored = avatar is not None
        person = Person(name, source, camera, tracker, path, partial(self._note, "source"), retrack, stored)
        if avatar is not None:
            tracker.recalibrate(Known(avatar.model.shape, stored_calibration(avatar)))
            person.sitter.learner = self._learner(avatar, path)
        return person

    def _tracker(self, known: Identity | None, calibration: Calibration | None) -> Tracker:
        run, models = self._config.run, self._options.models
        return make_tracker(self._head, known, calibration, cast("CropPolicy", run.crop), run.size, models)

    def _learner(self, avatar: Avatar, path: Path) -> Learner:
        run = self._config.run
        avatar.consent = avatar.consent or run.consent
        album = Album(album_folder(path), self._head, avatar.model.shape, keep=run.keep_frames)
        freeze = run.freeze or run.train_share == 0.0
        learner = Learner(avatar, path, freeze=freeze, backend=run.backend, autosave_s=run.autosave_s, album=album)
        learner.halted = self._halted
        return learner

    def _new_guest(self) -> Person | None:
        camera = partial(open_source, "browser", browser=self._camera)
        try:
            guest = self._person("browser", camera, new_avatar_path(), None)
        except UserError as error:
            self._refused = True
            self._note("browser camera", str(error))
            return None
        log.info("a browser lends its camera; its avatar will be %s", guest.path)
        return guest

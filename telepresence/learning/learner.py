"""What learns one person: the avatar's training, the coloured mesh, the torso, and the measurement.

`offer` is called by the tracking thread; `work` and `save` belong to the training thread; the display reads
`mesh`, `torso`, `exchange` and `score`, which are replaced whole, never changed in place.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from insta_runtime.errors import UserError
from telepresence.learning.appearance import AppearanceChange, AppearanceProbe, AppearanceMonitor
from telepresence.learning.frame_archive import FrameArchive
from telepresence.learning.frame_filter import FacePoints, FrameFilter
from telepresence.learning.guidance import Guidance
from telepresence.learning.likeness import SIDE, HeldBackSet, LikenessMeter, LikenessScore
from telepresence.learning.snapshot_gate import TrainingEvent, SnapshotGate
from telepresence.learning.saving import SavePoint, AvatarWriter, stored_training
from telepresence.runtime.scheduling import ray_part

if TYPE_CHECKING:
    from pathlib import Path

    from insta_runtime.avatar import Avatar
    from insta_runtime.learn.training_state import TrainingState
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from insta_runtime.torso.layer import TorsoLayer
    from insta_runtime.types import Float64, Observation

log = logging.getLogger("telepresence")

OFFER_S: Final = 0.2
"""Seconds between pictures that are learned from: closer ones look alike and cost the same."""
STEPS_A_PICTURE: Final = 3
"""Steps that are done for each picture taken: on a CPU a new one costs as much as two steps, and one that is hardly
learned from is worth nothing ..."""
PATIENT_S: Final = 2.0
"""... but one in so many seconds is taken on any machine."""
REFUSED_S: Final = 0.1
"""Seconds after a picture that was refused until the next is looked at."""
HOLD_BACK: Final = 8
"""One of so many of them is kept from learning and measured on instead ..."""
FIRST_HELD: Final = 2
"""... beginning with this one: until there is one, nobody knows when the avatar is worth showing."""
AUTOSAVE_S: Final = 10.0
"""Seconds between saves."""
RECALLED: Final = 64
"""Pictures that an avatar of an earlier call paints of itself, so that it goes on learning what it knew ..."""
RECALL_PART: Final = 0.2
"""... and the part of the time that this may take."""
UNLIKE: Final = ("mistracked", "cut off", "moving", "blurred")
"""Pictures that were refused for one of these say nothing of light, glasses or hair."""
KNOWN_STEPS: Final = 300
"""A younger avatar does not tell what is usual of a person."""
COLOUR_S: Final = 5.0
COLOUR_FIRST: Final = 10
"""The mesh takes its colours from the first so many pictures at once, then from one every `COLOUR_S`."""

TORSO_S: Final = 0.2
"""Seconds between pictures that the torso is learned from ..."""
TORSO_PART: Final = 0.06
"""... and the part of the time that it may take: later ones tell little, and a slow machine looks at fewer."""
TORSO_SHOWN_S: Final = 2.0
"""The display gets a new torso so often."""
TORSO_FIRST: Final = 8
"""A new torso is not worth showing before so many pictures ..."""
TORSO_AGAIN: Final = 40
"""... and one that takes the place of an earlier call's, of other clothes maybe, not before so many."""


class Learner:
    """Learns ``avatar`` from what it is offered, and measures how good it is; ``freeze`` only measures.

    While ``halted`` it does so, too; that may be changed at any time, on any thread.

    ``backend`` is a name that `insta_runtime.backends.choose_backend` knows.  ``gate`` counts what was not worth
    learning from, ``guidance`` what was seen of the person.
    """

    def __init__(
        self,
        avatar: Avatar,
        path: Path,
        *,
        freeze: bool,
        backend: str,
        autosave_s: float = AUTOSAVE_S,
        archive: FrameArchive | None = None,
        halted: threading.Event | None = None,
    ) -> None:
        from insta_runtime.backends import choose_backend, make_renderer, make_trainer
        from insta_runtime.learn.generative_replay import GenerativeReplay
        from insta_runtime.learn.weight_exchange import WeightExchange
        from insta_runtime.render.coloured_mesh import ColouredMesh
        from insta_runtime.torso.layer import TorsoLayer
        from insta_runtime.torso.learning import TorsoLearner
        from insta_runtime.torso.motion import SlowPose

        self.avatar, self.path, self.freeze = avatar, path, freeze
        self.loaded = avatar.steps > 0  # learned in an earlier call
        self.backend = choose_backend(backend, avatar.model)
        log.info("back end %s: %s", self.backend.kind, self.backend.reason)
        self._recall: GenerativeReplay | None = None
        if self.loaded and not freeze:  # before anything of the model is trained
            painter = partial(make_renderer, backend=self.backend)
            self._recall = GenerativeReplay(avatar.model, avatar.camera, painter, RECALLED)
        self._next_recall = 0.0
        self.trainer = make_trainer(avatar.model, self.backend)
        self.trainer.steps = avatar.steps
        if not freeze and (training := stored_training(path, avatar)) is not None:
            self.trainer.resume(training)
        self.gate = FrameFilter(FacePoints.of(avatar.model), avatar.model.code.raw)
        self.exchange = WeightExchange()
        self.display = make_renderer(avatar.model, self.backend)
        self.mesh: ColouredMesh | None = None
        self.torso: TorsoLayer | None = avatar.part(TorsoLayer)
        self._held_back = HeldBackSet(min(SIDE, avatar.model.config.learn.size))
        judge = LikenessMeter(avatar.model, self.backend)
        self._publisher = SnapshotGate(self.trainer, judge, self._held_back, self.exchange)
        self._saver = AvatarWriter(path, avatar, autosave_s, archive)
        self._album = archive
        self._stored = archive.stored() if archive is not None and not freeze else None
        self._watch = AppearanceMonitor(partial(AppearanceProbe, avatar.model, self.backend), self.loaded, self.trainer.on_stream)
        self.halted = halted if halted is not None else threading.Event()
        self._paused = False  # until it is known whose face is seen
        self.changes: deque[AppearanceChange] = deque(maxlen=8)  # of light, glasses, hair; whoever tells of them takes them out
        self._colours = ColouredMesh(avatar.model.rig, avatar.model.shape)
        self._shoulders = TorsoLearner(avatar.model.config.torso.size, avatar.model.device)
        self._slow = SlowPose()
        self._unseen: tuple[Observation, Float64] | None = None  # the newest picture for the torso
        self._torso_first = TORSO_FIRST if self.torso is None else TORSO_AGAIN
        self._next_torso = self._torso_shown = 0.0
        self._lock = threading.Lock()
        self._uncoloured: deque[Observation] = deque(maxlen=COLOUR_FIRST)
        self._offered = 0
        self._taken = -math.inf, 0  # when the last picture was, and after which step
        self.samples = 0  # of the field, in all steps
        self.guidance = Guidance.of(avatar.model.head.expression_names)
        self._next_offer = self._last_colour = -math.inf
        self._ray_part = 1.0
        self._seconds = avatar.seconds

    @property
    def score(self) -> LikenessScore | None:
        """Of what is shown, on pictures that were held back."""
        return self._publisher.score

    @property
    def learns(self) -> bool:
        """Whether pictures change the avatar."""
        return not (self.freeze or self.halted.is_set())

    @property
    def published(self) -> SnapshotGate:
        """What became of candidates."""
        return self._publisher

    def offer(self, observation: Observation, now: float) -> None:
        """Take a tracked picture to learn from, unless one was taken just before or it is not worth it."""
        self._paused = False
        self._offer_torso(observation)
        if now < self._next_offer or self._behind(now):
            self.gate.follow(observation)
            return
        reason = self.gate.judge(observation, now)
        self._next_offer = now + (OFFER_S if reason is None else REFUSED_S)
        if reason not in UNLIKE:
            self._watch.offer(observation)
        if reason is not None:
            return
        self._offered += 1
        self._taken = now, self.trainer.steps
        with self._lock:
            if self._offered % HOLD_BACK == FIRST_HELD:
                self._held_back.add(observation)
                return
            if self._offered <= COLOUR_FIRST or now - self._last_colour >= COLOUR_S:
                self._last_colour = now
                self._uncoloured.append(observation)
        self.guidance = self.guidance.after(observation.state)
        if self.learns:
            self.trainer.add(observation)
            if self._album is not None:
                self._album.add(observation)

    def consider(self, observation: Observation) -> None:
        """Learn nothing until the next `offer`: whose face this is, is not known.  `worse_db` will help to tell."""
        self._paused = True
        self._watch.consider(observation)

    @property
    def worse_db(self) -> float | None:
        """By how much the avatar renders what was considered worse than the person usually, dB; None if unknown."""
        return self._watch.worse_db

    def work(self) -> bool:
        """One round: colours, a training step, and whatever is due.  False if there was nothing to do."""
        now = time.monotonic()
        self._look(now)
        if self._paused:
            return False
        busy = self._colour()
        if not self.learns:
            return self._publisher.measure(self.mesh, now) or busy
        busy = self._learn_torso() or busy
        began = time.monotonic()
        report = self.trainer.step()
        self.samples += report.samples if report is not None else 0
        done = time.monotonic()
        self._seconds += done - began
        self._publisher.watch(report, done)
        self._remember()
        return self._publisher.work(self.mesh, done) or report is not None or busy

    def make_room(self, load: float) -> None:
        """Learn with fewer rays while the display needs the GPU: a picture took ``load`` of the time it has."""
        if self.backend.kind == "cuda":
            self._ray_part = ray_part(self._ray_part, load)
            self.trainer.set_ray_share(self._ray_part)

    def autosave(self, now: float) -> None:
        """SavePoint what is shown if it is time; never waits."""
        if self._saver.due(now) and self._publisher.good.steps != self._saver.steps:
            self._saver.start(self._save_of(self._publisher.good))

    def save(self) -> bool:
        """Write the avatar where it belongs, whole or not at all; False if nothing was learned since.

        Waits until it is written; UserError if it cannot be.
        """
        self._saver.finish()
        newest = self._publisher.newest()
        if self.freeze or newest.steps == self._saver.steps:
            return False
        self._saver.start(self._save_of(newest))
        self._saver.finish()
        if self._saver.trouble is not None:
            raise UserError(self._saver.trouble)
        return True

    def events(self) -> list[TrainingEvent]:
        """What has happened to the avatar's weights since this was last asked, for `/status`."""
        return [self._publisher.events.popleft() for _ in range(len(self._publisher.events))]

    @property
    def saved_steps(self) -> int:
        """Steps of the newest avatar on the disk."""
        return self._saver.steps

    @property
    def unsaved(self) -> str | None:
        """Why the avatar could not be saved last; None if it could."""
        return self._saver.trouble

    def start_epoch(self) -> None:
        """The light, glasses or a hat have changed: old pictures fade, and are no measure any more."""
        self._held_back.forget_older()
        self.trainer.replay.start_epoch()
        self.gate.forget()

    def _look(self, now: float) -> None:
        """Compare the newest picture with the avatar, if it is time and there is one worth comparing with."""
        good = self._publisher.good
        if good.steps < KNOWN_STEPS:
            return
        change = self._watch.work(good.shown, now, seldom=not self.learns)
        if change is not None:
            self.changes.append(change)
            if self.learns:
                self.start_epoch()

    def _save_of(self, state: TrainingState) -> SavePoint:
        if self.torso is not None:
            self.avatar.attach(self.torso)
        self.avatar.update(state.shown, state.steps, self._seconds)
        return SavePoint.of(self.avatar.record(), state, self.trainer)

    def _behind(self, now: float) -> bool:
        """Whether training has not learned enough yet from the pictures that were taken."""
        taken, steps = self._taken
        young = not self.learns or self._offered < COLOUR_FIRST
        return not young and self.trainer.steps < steps + STEPS_A_PICTURE and now < taken + PATIENT_S

    def _offer_torso(self, observation: Observation) -> None:
        from insta_runtime.torso.motion import picture_pose

        pose = picture_pose(observation.state, observation.camera)
        inputs = self._slow.inputs(pose, observation.t_capture_ns)
        if observation.body is not None:
            self._unseen = observation, inputs

    def _learn_torso(self) -> bool:
        began = time.monotonic()
        unseen = self._unseen
        if unseen is None or began < self._next_torso:
            return False
        self._unseen = None
        learner = self._shoulders
        learner.observe(*unseen)
        if learner.seen >= self._torso_first and began - self._torso_shown >= TORSO_SHOWN_S:
            self.torso = learner.layer()
            self._torso_shown = began
        done = time.monotonic()
        self._next_torso = max(began + TORSO_S, done + (done - began) / TORSO_PART)
        return True

    def _remember(self) -> None:
        """Give the replay a picture of an earlier call: one that was kept, or one of what the avatar knew."""
        began = time.monotonic()
        if not len(self.trainer.replay) or began < self._next_recall:
            return
        if self._stored is not None:
            observation = next(self._stored, None)
            if observation is None:
                self._stored = None
            else:
                self.trainer.add_recalled(observation)
        elif self._recall is None:
            return
        elif not self._recall.add_next(self.trainer):
            self._recall = None
        done = time.monotonic()
        self._next_recall = done + (done - began) / RECALL_PART

    def _colour(self) -> bool:
        with self._lock:
            observation = self._uncoloured.popleft() if self._uncoloured else None
        if observation is None:
            return False
        self._colours.observe(observation)
        self._colours.colours()
        if self.avatar.model.config.occupancy.inpaint:
            self.avatar.model.underlay = self._colours.underlay()
        # The copy's colours are never touched again: the display may use it while this one goes on.
        self.mesh = copy.copy(self._colours)
        return True

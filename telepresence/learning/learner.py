"""Learner of one subject: trains avatar, coloured mesh and torso during a call, and measures the avatar's PSNR.

`Learner.add_observation` and `add_unverified` are called by the tracking thread; `run_once`, `autosave` and `save` by
the training thread.  The display reads `mesh`, `torso`, `exchange` and `score`: these are replaced as a whole and never
changed in place.
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
from telepresence.learning.appearance import AppearanceChange, AppearanceMonitor, AppearanceProbe
from telepresence.learning.frame_archive import FrameArchive
from telepresence.learning.frame_filter import FacePoints, FrameFilter
from telepresence.learning.guidance import Guidance
from telepresence.learning.likeness import SIDE, HeldBackSet, LikenessMeter, LikenessScore
from telepresence.learning.saving import AvatarWriter, SavePoint, load_training_state
from telepresence.learning.snapshot_gate import SnapshotGate, TrainingEvent
from telepresence.runtime.ownership import any_thread, called_by, owned_by
from telepresence.runtime.scheduling import ray_part

if TYPE_CHECKING:
    from pathlib import Path

    from insta_runtime.avatar import Avatar
    from insta_runtime.learn.training_state import TrainingState
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from insta_runtime.torso.layer import TorsoLayer
    from insta_runtime.types import Float64, Observation

log = logging.getLogger("telepresence")

ACCEPTED_INTERVAL_S: Final = 0.2
"""Minimum seconds between two observations used for training, because closer frames are nearly the same."""
STEPS_PER_OBSERVATION: Final = 3
"""Minimum number of training steps between two observations.  On a CPU adding one costs as much as two steps."""
MAX_INTERVAL_S: Final = 2.0
"""Seconds after which a new observation is accepted even if `STEPS_PER_OBSERVATION` steps were not done (slow CPU)."""
REFUSED_INTERVAL_S: Final = 0.1
"""Seconds after a refused frame before the frame filter checks the next one."""
HELD_BACK_EVERY: Final = 8
"""One in this many accepted observations is held back from training and used to measure the avatar's PSNR."""
FIRST_HELD_BACK: Final = 2
"""Number of the first held-back observation, counted from 1; the avatar is displayed once measured on it."""
AUTOSAVE_S: Final = 10.0
"""Default seconds between two autosaves of an avatar."""
RECALLED_FRAMES: Final = 64
"""Number of frames rendered from a loaded avatar as training data against forgetting (generative replay)."""
RECALL_TIME_SHARE: Final = 0.2
"""Maximum fraction of the training thread's time spent on frames of earlier calls."""
NOT_COMPARABLE: Final = ("mistracked", "cut off", "moving", "blurred")
"""Refusal reasons of the frame filter with which a frame is not used to detect changes of light, glasses or hair."""
MIN_COMPARED_STEPS: Final = 300
"""Training steps before the avatar is good enough to detect changes of the subject's appearance."""
COLOUR_INTERVAL_S: Final = 5.0
"""Minimum seconds between two observations used to colour the mesh, after the first `FIRST_COLOUR_FRAMES`."""
FIRST_COLOUR_FRAMES: Final = 10
"""Number of first observations that are all used to colour the mesh."""

TORSO_INTERVAL_S: Final = 0.2
"""Minimum seconds between two observations used to train the torso."""
TORSO_TIME_SHARE: Final = 0.06
"""Maximum fraction of the training thread's time spent on the torso."""
TORSO_PUBLISH_S: Final = 2.0
"""Minimum seconds between two torso layers that are passed to the display."""
MIN_TORSO_FRAMES: Final = 8
"""Number of observations before the first torso layer of a new avatar is displayed."""
MIN_NEW_TORSO_FRAMES: Final = 40
"""Number of observations before a new torso layer replaces the one of an earlier call (the clothes may differ)."""


@owned_by("train")
class Learner:
    """Trains one avatar from the observations of a call, and measures the avatar's PSNR on held-back frames.

    Attributes:
        avatar: the avatar that is trained.
        path: file or folder in which the avatar is saved.
        freeze: whether the avatar is never trained in this call, only measured.
        halted: set while training is paused by the user; any thread may set it.
        loaded: whether the avatar was trained in an earlier call.
        backend: device and implementation of training and rendering.
        trainer: trainer of the avatar model.
        frame_filter: selects the observations to train on, and counts the refused ones.
        exchange: passes published snapshots to the display.
        display_renderer: renderer that the display uses.
        mesh, torso: newest coloured mesh and torso layer; None before there is one.
        appearance_changes: queue of detected changes of light, glasses or hair; readers remove them.
        guidance: head directions and expressions seen so far.
        samples: number of ray samples in all training steps.
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
        """``backend`` is a name accepted by `insta_runtime.backends.choose_backend`.

        ``autosave_s`` is the time between two autosaves in seconds, ``archive`` the archive of training frames (None:
        no archive).
        """
        from insta_runtime.backends import choose_backend, make_renderer, make_trainer
        from insta_runtime.learn.generative_replay import GenerativeReplay
        from insta_runtime.learn.weight_exchange import WeightExchange
        from insta_runtime.render.coloured_mesh import ColouredMesh
        from insta_runtime.torso.layer import TorsoLayer
        from insta_runtime.torso.learning import TorsoLearner
        from insta_runtime.torso.motion import SlowPose

        self.avatar, self.path, self.freeze = avatar, path, freeze
        self.loaded = avatar.steps > 0
        self.backend = choose_backend(backend, avatar.model)
        log.info("backend %s: %s", self.backend.kind, self.backend.reason)
        self._recall: GenerativeReplay | None = None
        if self.loaded and not freeze:  # copies the model before training changes it
            painter = partial(make_renderer, backend=self.backend)
            self._recall = GenerativeReplay(avatar.model, avatar.camera, painter, RECALLED_FRAMES)
        self._next_recall = 0.0
        self.trainer = make_trainer(avatar.model, self.backend)
        self.trainer.steps = avatar.steps
        if not freeze and (training := load_training_state(path, avatar)) is not None:
            self.trainer.resume(training)
        self.frame_filter = FrameFilter(FacePoints.of(avatar.model), avatar.model.code.regional)
        self.exchange = WeightExchange()
        self.display_renderer = make_renderer(avatar.model, self.backend)
        self.mesh: ColouredMesh | None = None
        self.torso: TorsoLayer | None = avatar.part(TorsoLayer)
        self._held_back = HeldBackSet(min(SIDE, avatar.model.config.learn.size))
        meter = LikenessMeter(avatar.model, self.backend)
        self._snapshot_gate = SnapshotGate(self.trainer, meter, self._held_back, self.exchange)
        self._writer = AvatarWriter(path, avatar, autosave_s, archive)
        self._archive = archive
        self._stored = archive.stored_observations() if archive is not None and not freeze else None
        self._appearance = AppearanceMonitor(
            partial(AppearanceProbe, avatar.model, self.backend), self.loaded, self.trainer.on_stream
        )
        self.halted = halted if halted is not None else threading.Event()
        self._reset_filter = threading.Event()
        self._unverified = False  # the newest face may be another subject's
        self.appearance_changes: deque[AppearanceChange] = deque(maxlen=8)
        self._mesh_builder = ColouredMesh(avatar.model.rig, avatar.model.shape)
        self._torso_learner = TorsoLearner(avatar.model.config.torso.size, avatar.model.device)
        self._slow_pose = SlowPose()
        self._torso_input: tuple[Observation, Float64] | None = None
        self._min_torso_frames = MIN_TORSO_FRAMES if self.torso is None else MIN_NEW_TORSO_FRAMES
        self._next_torso = self._torso_published = 0.0
        self._lock = threading.Lock()
        self._colour_queue: deque[Observation] = deque(maxlen=FIRST_COLOUR_FRAMES)
        self._accepted = 0
        self._last_accepted = -math.inf, 0  # (seconds, training steps) of the newest accepted observation
        self.samples = 0
        self.guidance = Guidance.of(avatar.model.head.expression_names)
        self._next_check = self._last_colour = -math.inf
        self._ray_share = 1.0
        self._seconds = avatar.seconds

    @property
    @any_thread
    def score(self) -> LikenessScore | None:
        """PSNR of the published snapshot and of the coloured mesh on held-back frames; None before it is measured."""
        return self._snapshot_gate.score

    @property
    @any_thread
    def learns(self) -> bool:
        """Whether observations are used for training; False if frozen for the whole call or halted by the user."""
        return not (self.freeze or self.halted.is_set())

    @property
    @any_thread
    def snapshot_gate(self) -> SnapshotGate:
        """The gate that decides which weight snapshots are published to the display, and counts its decisions."""
        return self._snapshot_gate

    @called_by("track")
    def add_observation(self, observation: Observation, now: float) -> None:
        """Pass in a tracked frame of the verified subject at monotonic second ``now``.

        At most one frame per `ACCEPTED_INTERVAL_S` is accepted by the frame filter, and then trained on or held back.
        """
        self._unverified = False
        if self._reset_filter.is_set():
            self._reset_filter.clear()
            self.frame_filter.reset_baseline()
        self._set_torso_input(observation)
        if now < self._next_check or self._is_behind(now):
            self.frame_filter.update_motion(observation)
            return
        reason = self.frame_filter.check(observation, now)
        self._next_check = now + (ACCEPTED_INTERVAL_S if reason is None else REFUSED_INTERVAL_S)
        if reason not in NOT_COMPARABLE:
            self._appearance.set_observation(observation)
        if reason is not None:
            return
        self._accepted += 1
        self._last_accepted = now, self.trainer.steps
        with self._lock:
            if self._accepted % HELD_BACK_EVERY == FIRST_HELD_BACK:
                self._held_back.add(observation)
                return
            if self._accepted <= FIRST_COLOUR_FRAMES or now - self._last_colour >= COLOUR_INTERVAL_S:
                self._last_colour = now
                self._colour_queue.append(observation)
        self.guidance = self.guidance.after(observation.state)
        if self.learns:
            self.trainer.add(observation)
            if self._archive is not None:
                self._archive.add(observation)

    @called_by("track")
    def add_unverified(self, observation: Observation) -> None:
        """Pass in a frame of a face that may be another subject's; training pauses until `add_observation`.

        The frame is compared with the avatar, which updates `worse_db`.
        """
        self._unverified = True
        self._appearance.set_unverified(observation)

    @property
    @any_thread
    def worse_db(self) -> float | None:
        """PSNR loss (dB) of the avatar on unverified frames against the subject's usual PSNR; None if unknown."""
        return self._appearance.worse_db

    def run_once(self) -> bool:
        """Do one round of the training thread: mesh colours, training step, publishing.  False if nothing was done."""
        now = time.monotonic()
        self._check_appearance(now)
        if self._unverified:
            return False
        busy = self._update_mesh()
        if not self.learns:
            return self._snapshot_gate.measure_published(self.mesh, now) or busy
        busy = self._train_torso() or busy
        began = time.monotonic()
        report = self.trainer.step()
        self.samples += report.samples if report is not None else 0
        done = time.monotonic()
        self._seconds += done - began
        self._snapshot_gate.on_step(report, done)
        self._replay_earlier_call()
        return self._snapshot_gate.run_once(self.mesh, done) or report is not None or busy

    @called_by("render")
    def set_display_load(self, load: float) -> None:
        """Adapt the rays per training step on a GPU to ``load``, the fraction of frame time spent rendering."""
        if self.backend.kind == "cuda":
            self._ray_share = ray_part(self._ray_share, load)
            self.trainer.set_ray_share(self._ray_share)

    def autosave(self, now: float) -> None:
        """Start saving the published avatar in the background if it is due at second ``now``; never waits."""
        good = self._snapshot_gate.published_state
        if self._writer.due(now) and good.steps != self._writer.steps:
            self._writer.start(self._save_point(good))

    @any_thread
    def save(self) -> bool:
        """Save the newest valid training state and wait until it is written.

        Returns False if the call does not train, or if nothing was trained since the last save.

        The files are replaced atomically.  UserError if they cannot be written.
        """
        self._writer.finish()
        newest = self._snapshot_gate.state_to_save()
        if self.freeze or newest.steps == self._writer.steps:
            return False
        self._writer.start(self._save_point(newest))
        self._writer.finish()
        if self._writer.error is not None:
            raise UserError(self._writer.error)
        return True

    def take_events(self) -> list[TrainingEvent]:
        """Return and clear the events of training (returns to an earlier state) since the last call."""
        return [self._snapshot_gate.events.popleft() for _ in range(len(self._snapshot_gate.events))]

    @property
    @any_thread
    def saved_steps(self) -> int:
        """Number of training steps of the avatar saved last."""
        return self._writer.steps

    @property
    @any_thread
    def save_error(self) -> str | None:
        """Error message of the last attempt to save the avatar; None if it succeeded."""
        return self._writer.error

    def start_epoch(self) -> None:
        """Begin a new replay epoch after a change of light, glasses or hair: older frames are replayed less often."""
        self._held_back.drop_older()
        self.trainer.replay.start_epoch()
        self._reset_filter.set()  # the filter belongs to the tracking thread

    def _check_appearance(self, now: float) -> None:
        """Compare the newest frame with the avatar's rendering, if one is due, and report a change."""
        good = self._snapshot_gate.published_state
        if good.steps < MIN_COMPARED_STEPS:
            return
        change = self._appearance.run_once(good.shown, now, seldom=not self.learns)
        if change is not None:
            self.appearance_changes.append(change)
            if self.learns:
                self.start_epoch()

    def _save_point(self, state: TrainingState) -> SavePoint:
        if self.torso is not None:
            self.avatar.attach(self.torso)
        self.avatar.update(state.shown, state.steps, self._seconds)
        return SavePoint.of(self.avatar.contents(), state, self.trainer)

    def _is_behind(self, now: float) -> bool:
        """Whether too few training steps were done since the newest accepted observation."""
        accepted, steps = self._last_accepted
        young = not self.learns or self._accepted < FIRST_COLOUR_FRAMES
        return not young and self.trainer.steps < steps + STEPS_PER_OBSERVATION and now < accepted + MAX_INTERVAL_S

    def _set_torso_input(self, observation: Observation) -> None:
        from insta_runtime.torso.motion import picture_pose

        pose = picture_pose(observation.state, observation.camera)
        inputs = self._slow_pose.inputs(pose, observation.t_capture_ns)
        if observation.body is not None:
            self._torso_input = observation, inputs

    def _train_torso(self) -> bool:
        began = time.monotonic()
        newest = self._torso_input
        if newest is None or began < self._next_torso:
            return False
        self._torso_input = None
        learner = self._torso_learner
        learner.observe(*newest)
        if learner.seen >= self._min_torso_frames and began - self._torso_published >= TORSO_PUBLISH_S:
            self.torso = learner.layer()
            self._torso_published = began
        done = time.monotonic()
        self._next_torso = max(began + TORSO_INTERVAL_S, done + (done - began) / TORSO_TIME_SHARE)
        return True

    def _replay_earlier_call(self) -> None:
        """Add one frame of an earlier call to the replay: an archived one, or one rendered by the loaded avatar."""
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
        self._next_recall = done + (done - began) / RECALL_TIME_SHARE

    def _update_mesh(self) -> bool:
        """Colour the mesh with one queued observation.  False if there was none."""
        with self._lock:
            observation = self._colour_queue.popleft() if self._colour_queue else None
        if observation is None:
            return False
        self._mesh_builder.observe(observation)
        self._mesh_builder.colours()
        if self.avatar.model.config.occupancy.inpaint:
            self.avatar.model.underlay = self._mesh_builder.underlay()
        # The display may use this copy while the builder goes on: the copy's colours are never written again.
        self.mesh = copy.copy(self._mesh_builder)
        return True

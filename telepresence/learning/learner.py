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
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Final

from telepresence.pacing import ray_part

if TYPE_CHECKING:
    from pathlib import Path

    from insta_runtime.avatar import Avatar
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from insta_runtime.torso.layer import TorsoLayer
    from insta_runtime.types import Camera, Float64, Observation, RenderedFrame

log = logging.getLogger("telepresence")

OFFER_S: Final = 0.2
"""Seconds between pictures that are learned from: closer ones look alike and cost the same."""
HOLD_BACK: Final = 8
"""Every so many-th of them is kept from learning and measured on instead."""
HELD_BACK: Final = 4
"""How many of the newest held-back pictures the measurement takes."""
PUBLISH_S: Final = 1.0
FIRST_STEPS: Final = 8
"""A new avatar is not worth measuring before so many steps."""
EVALUATE_S: Final = 4.0
EVALUATE_PART: Final = 0.1
"""Part of the time that measuring may take: a slow machine measures less often."""
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


@dataclass(frozen=True)
class Score:
    """Mean PSNR (dB, head region) of the avatar and of the coloured mesh on held-back pictures, after ``steps``."""

    avatar_db: float
    mesh_db: float
    steps: int

    @property
    def gain_db(self) -> float:
        return self.avatar_db - self.mesh_db


class Learner:
    """Learns ``avatar`` from what it is offered, and measures how good it is; ``freeze`` only measures.

    ``backend`` is a name that `insta_runtime.backends.choose_backend` knows.
    """

    def __init__(self, avatar: Avatar, path: Path, *, freeze: bool, backend: str) -> None:
        from insta_runtime.backends import choose_backend, make_renderer, make_trainer
        from insta_runtime.learn.weights import WeightExchange
        from insta_runtime.render.coloured_mesh import ColouredMesh
        from insta_runtime.torso.layer import TorsoLayer
        from insta_runtime.torso.learning import TorsoLearner
        from insta_runtime.torso.motion import SlowPose

        self.avatar, self.path, self.freeze = avatar, path, freeze
        self.loaded = avatar.steps > 0  # learned in an earlier call
        self.backend = choose_backend(backend, avatar.model)
        log.info("back end %s: %s", self.backend.kind, self.backend.reason)
        self.trainer = make_trainer(avatar.model, self.backend)
        self.trainer.steps = avatar.steps
        self.exchange = WeightExchange()
        self.display = make_renderer(avatar.model, self.backend)
        self.mesh: ColouredMesh | None = None
        self.score: Score | None = None
        self.torso: TorsoLayer | None = avatar.part(TorsoLayer)
        self._judge = make_renderer(avatar.model, self.backend)
        self._colours = ColouredMesh(avatar.model.rig, avatar.model.shape)
        self._shoulders = TorsoLearner(avatar.model.config.torso.size, avatar.model.device)
        self._slow = SlowPose()
        self._unseen: tuple[Observation, Float64] | None = None  # the newest picture for the torso
        self._torso_first = TORSO_FIRST if self.torso is None else TORSO_AGAIN
        self._next_torso = self._torso_shown = 0.0
        self._size = avatar.model.config.learn.size
        self._lock = threading.Lock()
        self._uncoloured: deque[Observation] = deque(maxlen=COLOUR_FIRST)
        self._held_back: deque[Observation] = deque(maxlen=HELD_BACK)
        self._offered = 0
        self._last_offer = self._last_colour = self._last_publish = -math.inf
        self._next_score = 0.0
        self._saved_steps = avatar.steps
        self._ray_part = 1.0
        self._seconds = avatar.seconds

    def offer(self, observation: Observation, now: float) -> None:
        """Take a tracked picture to learn from, unless one was taken just before."""
        self._offer_torso(observation)
        if now - self._last_offer < OFFER_S:
            return
        self._last_offer = now
        self._offered += 1
        with self._lock:
            if self._offered % HOLD_BACK == 0:
                self._held_back.append(observation)
                return
            if self._offered <= COLOUR_FIRST or now - self._last_colour >= COLOUR_S:
                self._last_colour = now
                self._uncoloured.append(observation)
        if not self.freeze:
            self.trainer.add(observation)

    def work(self) -> bool:
        """One round: colours, a training step, and whatever is due.  False if there was nothing to do."""
        busy = self._colour()
        if not self.freeze:
            busy = self._learn_torso() or busy
            began = time.monotonic()
            busy = self.trainer.step() is not None or busy
            self._seconds += time.monotonic() - began
            self._publish()
        return self._measure() or busy

    def make_room(self, load: float) -> None:
        """Learn with fewer rays while the display needs the GPU: a picture took ``load`` of the time it has."""
        from insta_runtime.learn.native import NativeTrainer

        if self.backend.kind == "cuda" and isinstance(self.trainer, NativeTrainer):
            self._ray_part = ray_part(self._ray_part, load)
            self.trainer.set_budget(self._ray_part)

    def save(self) -> bool:
        """Write the avatar where it belongs, whole or not at all; False if nothing was learned since."""
        if self.trainer.steps == self._saved_steps:
            return False
        if self.torso is not None:
            self.avatar.attach(self.torso)
        self.avatar.update(self.trainer.snapshot(), self.trainer.steps, self._seconds)
        self.avatar.save(self.path)
        self._saved_steps = self.trainer.steps
        return True

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

    def _publish(self) -> None:
        now = time.monotonic()
        if self.trainer.steps and now - self._last_publish >= PUBLISH_S:
            self._last_publish = now
            with self.trainer.on_stream():
                self.exchange.publish(self.trainer.snapshot())

    def _measure(self) -> bool:
        now = time.monotonic()
        with self._lock:
            held_back = list(self._held_back)
        young = not self.loaded and self.trainer.steps < FIRST_STEPS
        if young or not held_back or self.mesh is None or now < self._next_score:
            return False
        if not self.freeze:
            self._judge.load(self.trainer.snapshot())
        avatar_db = fmean(self._psnr(o, self._judge.render(o.state, self._camera(o))) for o in held_back)
        mesh_db = fmean(self._psnr(o, self.mesh.render(o.state, self._camera(o))) for o in held_back)
        if math.isfinite(avatar_db) and math.isfinite(mesh_db):
            self.score = Score(avatar_db, mesh_db, self.trainer.steps)
        done = time.monotonic()
        self._next_score = done + max(EVALUATE_S, (done - now) / EVALUATE_PART)
        return True

    def _camera(self, observation: Observation) -> Camera:
        return observation.camera.scaled(self._size, self._size)

    def _psnr(self, observation: Observation, picture: RenderedFrame) -> float:
        """Over white, in the head region, at the size that is learned."""
        import torch

        from insta_runtime.learn.metrics import head_mask, over_white, psnr
        from insta_runtime.learn.replay import premultiplied

        truth, _ = premultiplied(observation, self._size)
        alpha = (truth[..., 3] * 255.0).to(torch.uint8).numpy()
        return psnr(over_white(picture.rgba), over_white(truth), head_mask(alpha))

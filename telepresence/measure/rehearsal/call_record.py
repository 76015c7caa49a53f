"""Snapshots and observations kept during a rehearsed call, so that it can be measured when it is over.

Nothing is copied or computed: published snapshots and observations are never written to again, so keeping references to
them costs memory alone.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from telepresence.measure.rehearsal.measurement_plan import NEXT_S, MeasurementPlan
from telepresence.runtime.frames import OutputFrame, RenderInputs, TrackedFrame

if TYPE_CHECKING:
    from insta_runtime.field.expression_code import ExpressionCode
    from insta_runtime.render.renderer import Snapshot
    from insta_runtime.types import Observation
    from telepresence.learning.learner import Learner

RECENT_SNAPSHOTS: Final = 4
"""Number of newest snapshots kept, one of which the display is rendering with."""


@dataclass(frozen=True)
class PublishedSnapshot:
    """Weights that a learner published during a call, with everything else that rendering with them needs.

    Attributes:
        at: seconds of the call.
        number: number of this publication, counted by ``learner``.
        learner: the learner that published it.
        snapshot: the weights.
        code: expression code at that time.
        steps: training steps until then.
    """

    at: float
    number: int
    learner: Learner
    snapshot: Snapshot
    code: ExpressionCode
    steps: int


@dataclass(frozen=True)
class MeasuredObservation:
    """An observation captured ``at`` seconds of the call; ``learner`` learned its subject then (None: no learner)."""

    at: float
    observation: Observation
    learner: Learner | None


@dataclass(frozen=True)
class PublicationCrossfade:
    """Frames rendered while the display faded from the snapshot ``before`` to ``after``.

    The first of ``frames`` is the last one rendered with ``before`` alone.
    """

    before: PublishedSnapshot
    after: PublishedSnapshot
    frames: list[RenderInputs]


class CallRecord:
    """Record of a rehearsed call, from which its figures are computed.

    `on_tracked_frame` is called in the tracking thread, `on_shown_frame` in the render thread; snapshots arrive in the
    training thread.  Read the attributes when the call is over.  Seconds count from the first camera frame.

    Attributes:
        began: monotonic seconds of the first camera frame; None before it.
        first_face: seconds of the first tracked face, provisional or calibrated; None if there was none.
        first_picture: seconds of the first frame for viewers that showed the head.
        first_avatar: seconds of the first frame for viewers that showed the avatar.
        snapshots: snapshots that were the newest at a moment of the plan, in order of time.
        observations: observations to measure on, in order of time.
        showing: (seconds, whether viewers saw the avatar), wherever that changed.
        crossfades: publications whose visibility is measured.
        pictures: number of tracked camera frames.
        faces: number of tracked camera frames with a face.
        learner: the last learner.
        host_bytes: main memory held by this record.
        device_bytes: GPU memory held by this record.
    """

    def __init__(self, plan: MeasurementPlan, fade_s: float) -> None:
        """``fade_s`` is the duration in seconds of the display's cross-fade to new weights."""
        self.plan = plan
        self.began: float | None = None
        self.first_face: float | None = None
        self.first_picture: float | None = None
        self.first_avatar: float | None = None
        self.snapshots: list[PublishedSnapshot] = []
        self.observations: list[MeasuredObservation] = []
        self.showing: list[tuple[float, bool]] = []
        self.crossfades: list[PublicationCrossfade] = []
        self.pictures = self.faces = 0
        self.learner: Learner | None = None
        self.host_bytes = self.device_bytes = 0
        self._fade_s = fade_s
        self._lock = threading.Lock()
        self._recent: deque[PublishedSnapshot] = deque(maxlen=RECENT_SNAPSHOTS)
        self._newest_observation_at = -math.inf
        self._counted: dict[int, set[int]] = {}  # numbers of snapshots whose memory was counted, by id of the learner
        self._last: RenderInputs | None = None
        self._next_crossfade = 0.0

    def seconds_at(self, moment: float) -> float:
        """Convert monotonic seconds to seconds of the call; 0 before it has begun."""
        return moment - self.began if self.began is not None else 0.0

    def on_tracked_frame(self, frame: TrackedFrame, learner: Learner | None) -> None:
        """Record a tracked frame; ``learner`` is the one that learns its subject, if any."""
        if self.began is None:
            self.began = frame.t_capture_ns / 1e9
        if learner is not None and learner is not self.learner:
            self.learner = learner
            learner.exchange.on_publish = partial(self._on_publish, learner)
        self.pictures += 1
        at = self.seconds_at(frame.t_capture_ns / 1e9)
        if self.first_face is None and (frame.observation or frame.provisional):
            self.first_face = at
        if frame.observation is None:
            return
        self.faces += 1
        if self.plan.wants_observation(at, self._newest_observation_at):
            self._newest_observation_at = at
            self._count_observation(frame.observation)
            self.observations.append(MeasuredObservation(at, frame.observation, learner))

    def on_shown_frame(self, frame: OutputFrame) -> None:
        """Record a finished frame that is sent to viewers."""
        if self.began is None:
            return
        at, rendered = self.seconds_at(time.monotonic()), frame.render_inputs
        if rendered is not None and self.first_picture is None:
            self.first_picture = at
        if frame.is_avatar and self.first_avatar is None:
            self.first_avatar = at
        if not self.showing or self.showing[-1][1] != frame.is_avatar:
            self.showing.append((at, frame.is_avatar))
        if frame.is_avatar and rendered is not None:
            self._update_crossfade(at, rendered)
            self._last = rendered
        else:
            self._last = None

    def finish(self) -> None:
        """Keep the last snapshot too; call it when the call is over and no publication follows."""
        self._keep_newest(math.inf)

    def newest(self, at: float) -> PublishedSnapshot | None:
        """Newest snapshot that had been published at a moment of the plan; None if there was none."""
        return next((item for item in reversed(self.snapshots) if item.at <= at), None)

    def observations_after(self, at: float, learner: Learner) -> list[Observation]:
        """Observations of the learner's subject in the `NEXT_S` seconds after ``at``."""
        return [
            item.observation for item in self.observations if at < item.at <= at + NEXT_S and item.learner is learner
        ]

    def observations_until(self, at: float, learner: Learner) -> list[Observation]:
        """Observations of the learner's subject until ``at``."""
        return [item.observation for item in self.observations if item.at <= at and item.learner is learner]

    def avatar_shown(self, at: float) -> bool:
        """Whether viewers saw the avatar at ``at`` seconds of the call."""
        return next((avatar for since, avatar in reversed(self.showing) if since <= at), False)

    def _on_publish(self, learner: Learner, number: int, snapshot: Snapshot) -> None:
        code = copy.copy(learner.avatar.model.code)
        at, steps = self.seconds_at(time.monotonic()), learner.trainer.steps
        item = PublishedSnapshot(at, number, learner, snapshot, code, steps)
        with self._lock:
            self._keep_newest(item.at)
            self._recent.append(item)

    def _keep_newest(self, until: float) -> None:
        if self._recent and self.plan.wants_weights(self._recent[-1].at, until):
            self.snapshots.append(self._recent[-1])
            self._count_snapshot(self._recent[-1])

    def _count_observation(self, observation: Observation) -> None:
        body = observation.body.nbytes if observation.body is not None else 0
        self.host_bytes += observation.rgb.nbytes + observation.alpha.nbytes + body

    def _count_snapshot(self, published: PublishedSnapshot) -> None:
        """Add the memory of a snapshot to the totals, once."""
        if published.number in self._counted.setdefault(id(published.learner), set()):
            return
        self._counted[id(published.learner)].add(published.number)
        for tensor in published.snapshot.values():
            size = tensor.numel() * tensor.element_size()
            if tensor.is_cuda:
                self.device_bytes += size
            else:
                self.host_bytes += size

    def _update_crossfade(self, at: float, rendered: RenderInputs) -> None:
        """Start a cross-fade if new weights are shown and one is due, or add the frame to the current one."""
        current, last = self.crossfades[-1] if self.crossfades else None, self._last
        if last is None:
            return
        if rendered.weights != last.weights:
            if at >= self._next_crossfade:
                self._begin_crossfade(at, last, rendered)
        elif current is not None and current.frames[-1] is last and last.at - current.frames[0].at <= self._fade_s:
            current.frames.append(rendered)

    def _begin_crossfade(self, at: float, last: RenderInputs, rendered: RenderInputs) -> None:
        with self._lock:
            recent = {item.number: item for item in self._recent}
        before, after = recent.get(last.weights), recent.get(rendered.weights)
        if before is not None and after is not None and before.learner is after.learner:
            with self._lock:
                self._count_snapshot(before)
                self._count_snapshot(after)
            self.crossfades.append(PublicationCrossfade(before, after, [last, rendered]))
            self._next_crossfade = at + self.plan.crossfade_interval_s

"""What is kept of a call while it goes on, so that it can be measured when it is over.

Nothing is copied and nothing computed: published snapshots and observations are never written to again, so holding on
to them costs memory alone.
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

from telepresence.measure.rehearsal.plan import NEXT_S, Plan
from telepresence.runtime.frames import RenderInputs, OutputFrame, TrackedFrame

if TYPE_CHECKING:
    from insta_runtime.field.expression_code import ExpressionCode
    from insta_runtime.render.renderer import Snapshot
    from insta_runtime.types import Observation
    from telepresence.learning.learner import Learner

RECENT: Final = 4
"""Publications of which the display may show one."""


@dataclass(frozen=True)
class Published:
    """Weights as they were published ``at`` seconds of the call, and what else drawing with them takes.

    ``number`` counts the publications of ``learner``; ``code`` is how expressions were told to the field then.
    """

    at: float
    number: int
    learner: Learner
    snapshot: Snapshot
    code: ExpressionCode
    steps: int


@dataclass(frozen=True)
class Seen:
    """A tracked picture, captured ``at`` seconds of the call, of whom ``learner`` was learning."""

    at: float
    observation: Observation
    learner: Learner | None


@dataclass(frozen=True)
class Fade:
    """A publication as viewers saw it: the last picture of the weights ``before``, then those drawn ``after``."""

    before: Published
    after: Published
    drawn: list[RenderInputs]


class Record:
    """Everything that the figures of a rehearsal come from.

    `tracked` is called in the tracking thread, `shown` in the render thread; publications come in from the training
    thread.  Read the attributes when the call is over.  Seconds count from the first picture of the camera.

    Attributes:
        began: monotonic seconds of that picture, None before it.
        first_face, first_picture, first_avatar: seconds of the first tracked face (or provisional of it), and of the first
            picture that showed the head, the avatar; None if there was none.
        published: those that were the newest at a moment of the plan, ascending. seen: pictures to measure on.
        showing: (seconds, whether it was the avatar), wherever that changed. fades: publications to look at.
        pictures, faces: tracked so far, and those with a face in them.
        learner: of whoever was learned last.
        host_bytes, device_bytes: what all this holds on to.
    """

    def __init__(self, plan: Plan, fade_s: float) -> None:
        """``fade_s`` is how many seconds it takes until a publication is shown fully."""
        self.plan = plan
        self.began: float | None = None
        self.first_face: float | None = None
        self.first_picture: float | None = None
        self.first_avatar: float | None = None
        self.published: list[Published] = []
        self.seen: list[Seen] = []
        self.showing: list[tuple[float, bool]] = []
        self.fades: list[Fade] = []
        self.pictures = self.faces = 0
        self.learner: Learner | None = None
        self.host_bytes = self.device_bytes = 0
        self._fade_s = fade_s
        self._lock = threading.Lock()
        self._recent: deque[Published] = deque(maxlen=RECENT)
        self._kept_at = -math.inf
        self._weighed: dict[int, set[int]] = {}  # publications of each learner that were counted
        self._last: RenderInputs | None = None
        self._next_fade = 0.0

    def at(self, moment: float) -> float:
        """Seconds of the call at a monotonic second; 0 before it has begun."""
        return moment - self.began if self.began is not None else 0.0

    def tracked(self, frame: TrackedFrame, learner: Learner | None) -> None:
        """A picture was tracked while ``learner`` was learning, if anybody."""
        if self.began is None:
            self.began = frame.t_capture_ns / 1e9
        if learner is not None and learner is not self.learner:
            self.learner = learner
            learner.exchange.watch = partial(self._publish, learner)
        self.pictures += 1
        at = self.at(frame.t_capture_ns / 1e9)
        if self.first_face is None and (frame.observation or frame.provisional):
            self.first_face = at
        if frame.observation is None:
            return
        self.faces += 1
        if self.plan.wants_picture(at, self._kept_at):
            self._kept_at = at
            self._hold(frame.observation)
            self.seen.append(Seen(at, frame.observation, learner))

    def shown(self, frame: OutputFrame) -> None:
        """A picture is on its way to the viewers."""
        if self.began is None:
            return
        at, drawn = self.at(time.monotonic()), frame.render_inputs
        if drawn is not None and self.first_picture is None:
            self.first_picture = at
        if frame.is_avatar and self.first_avatar is None:
            self.first_avatar = at
        if not self.showing or self.showing[-1][1] != frame.is_avatar:
            self.showing.append((at, frame.is_avatar))
        if frame.is_avatar and drawn is not None:
            self._follow(at, drawn)
            self._last = drawn
        else:
            self._last = None

    def finish(self) -> None:
        """The call is over: no other publication follows."""
        self._keep_newest(math.inf)

    def newest(self, at: float) -> Published | None:
        """The weights that were the newest published at a moment of the plan."""
        return next((item for item in reversed(self.published) if item.at <= at), None)

    def after(self, at: float, learner: Learner) -> list[Observation]:
        """What came in the `NEXT_S` after a moment, seen by who learns in ``learner``."""
        return [seen.observation for seen in self.seen if at < seen.at <= at + NEXT_S and seen.learner is learner]

    def until(self, at: float, learner: Learner) -> list[Observation]:
        """What was seen until a moment."""
        return [seen.observation for seen in self.seen if seen.at <= at and seen.learner is learner]

    def avatar_shown(self, at: float) -> bool:
        """Whether viewers saw the avatar at a moment."""
        return next((avatar for since, avatar in reversed(self.showing) if since <= at), False)

    def _publish(self, learner: Learner, number: int, snapshot: Snapshot) -> None:
        code = copy.copy(learner.avatar.model.code)
        item = Published(self.at(time.monotonic()), number, learner, snapshot, code, learner.trainer.steps)
        with self._lock:
            self._keep_newest(item.at)
            self._recent.append(item)

    def _keep_newest(self, until: float) -> None:
        if self._recent and self.plan.wants_weights(self._recent[-1].at, until):
            self.published.append(self._recent[-1])
            self._weigh(self._recent[-1])

    def _hold(self, observation: Observation) -> None:
        body = observation.body.nbytes if observation.body is not None else 0
        self.host_bytes += observation.rgb.nbytes + observation.alpha.nbytes + body

    def _weigh(self, published: Published) -> None:
        """Count what a publication takes, once."""
        if published.number in self._weighed.setdefault(id(published.learner), set()):
            return
        self._weighed[id(published.learner)].add(published.number)
        for tensor in published.snapshot.values():
            size = tensor.numel() * tensor.element_size()
            if tensor.is_cuda:
                self.device_bytes += size
            else:
                self.host_bytes += size

    def _follow(self, at: float, drawn: RenderInputs) -> None:
        """Note a picture of the avatar if it belongs to a publication that is looked at."""
        fade, last = self.fades[-1] if self.fades else None, self._last
        if last is None:
            return
        if drawn.weights != last.weights:
            if at >= self._next_fade:
                self._begin_fade(at, last, drawn)
        elif fade is not None and fade.drawn[-1] is last and last.at - fade.drawn[0].at <= self._fade_s:
            fade.drawn.append(drawn)

    def _begin_fade(self, at: float, last: RenderInputs, drawn: RenderInputs) -> None:
        with self._lock:
            recent = {item.number: item for item in self._recent}
        before, after = recent.get(last.weights), recent.get(drawn.weights)
        if before is not None and after is not None and before.learner is after.learner:
            with self._lock:
                self._weigh(before)
                self._weigh(after)
            self.fades.append(Fade(before, after, [last, drawn]))
            self._next_fade = at + self.plan.fade_every

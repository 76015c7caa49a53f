"""Publishing of weight snapshots: each candidate is measured on held-back frames before the display receives it.

About once a second the averaged weights become a candidate.  It is published unless it renders held-back frames
(`likeness.HeldBackSet`) worse than the published snapshot does.  After several candidates in a row that were worse,
training returns to the state of the last published snapshot and continues with a lower learning rate for a while.
Weights or losses that are not finite make it return at once.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean
from typing import TYPE_CHECKING, Final

from telepresence.learning.likeness import RECENT, HeldBackFrame, HeldBackSet, LikenessMeter, LikenessScore, finite_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from insta_runtime.learn.trainer_interface import StepReport, Trainer
    from insta_runtime.learn.training_state import TrainingState
    from insta_runtime.learn.weight_exchange import WeightExchange
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from insta_runtime.render.renderer import Snapshot

PUBLISH_S: Final = 1.0
"""Minimum seconds between two candidates for publishing."""
EARLY_PUBLISH_S: Final = 0.5
"""Minimum seconds between two candidates during the first `EARLY_S` seconds of training."""
EARLY_S: Final = 10.0
"""Seconds from the first candidate in which candidates are made every `EARLY_PUBLISH_S`, as PSNR rises quickly."""
MEASURE_TIME_SHARE: Final = 0.15
"""Maximum fraction of the training thread's time spent measuring candidates; a slow machine measures fewer frames."""
MEASURE_PERIOD_S: Final = 2.5
"""Assumed seconds between two candidates, from which the number of frames to measure is computed."""
FROZEN_MEASURE_S: Final = 30.0
"""Seconds between two measurements of an avatar that is not trained, whose held-back frames alone change."""
SLICE_S: Final = 0.3
"""Maximum seconds of measuring per round on a CPU.  On a GPU, which the display also uses, a round is one frame."""
EARLY_STEPS: Final = 64
"""Training steps until which one held-back frame is enough to measure a candidate."""
MIN_FRAMES: Final = 3
"""Minimum number of held-back frames before a candidate can be withheld."""
FIRST_STEPS: Final = 8
"""Training steps before the first candidate of a new avatar."""
MARGIN_DB: Final = 0.3
"""PSNR loss (dB) against the published snapshot above which a candidate is withheld."""
MAX_WITHHELD: Final = 5
"""Number of candidates withheld in a row after which training returns to the published state."""
SLOW_FACTOR: Final = 0.3
"""Factor on the learning rate directly after training returned to an earlier state."""
SLOW_S: Final = 30.0
"""Seconds in which the learning rate rises from `SLOW_FACTOR` back to normal."""
NOVELTY_OFFSET_DB: Final = 3.0
"""PSNR loss (dB) on new frames, against the better half of the older ones, up to which they are not novel."""
NOVELTY_RANGE_DB: Final = 4.0
"""Further PSNR loss (dB), beyond `NOVELTY_OFFSET_DB`, from which new frames are fully novel (1)."""


class Outcome(StrEnum):
    """What became of a candidate snapshot, or of training that produced non-finite values (`ROLLED_BACK`)."""

    PUBLISHED = "published"
    WITHHELD = "withheld"
    STEPPED_BACK = "stepped_back"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class PublishState:
    """Immutable state machine of publishing; each transition returns a new state.

    Attributes:
        in_a_row: number of candidates withheld since the last published one.
        slowed: monotonic second at which training last returned to an earlier state; None if it never did.
    """

    in_a_row: int = 0
    slowed: float | None = None

    def decide(
        self, candidate_db: float | None, published_db: float | None, now: float
    ) -> tuple[PublishState, Outcome]:
        """Compare the PSNRs (dB) of candidate and published snapshot on the same frames; None: not measured."""
        if candidate_db is None or published_db is None or candidate_db >= published_db - MARGIN_DB:
            return replace(self, in_a_row=0), Outcome.PUBLISHED
        if self.in_a_row + 1 < MAX_WITHHELD:
            return replace(self, in_a_row=self.in_a_row + 1), Outcome.WITHHELD
        return PublishState(0, now), Outcome.STEPPED_BACK

    def rolled_back(self, now: float) -> PublishState:
        """The next state, after training returned to an earlier state because of values that are not finite."""
        return PublishState(0, now)

    def rate_factor(self, now: float) -> float:
        """Factor on the learning rate at monotonic second ``now``: `SLOW_FACTOR` after a step back, rising to 1."""
        if self.slowed is None:
            return 1.0
        return SLOW_FACTOR ** min(1.0, max(0.0, 1.0 - (now - self.slowed) / SLOW_S))


def select_frames(frames: list[HeldBackFrame], count: int) -> list[HeldBackFrame]:
    """Select at most ``count`` of the held-back frames, about half of them the newest.

    ``frames`` is in the order of `HeldBackSet.frames`: older ones first.
    """
    older, recent = frames[:-RECENT], frames[-RECENT:]
    recent = recent[-max(count - len(older), count - count // 2) :]
    rest = count - len(recent)
    return [*(older[-rest:] if rest > 0 else []), *recent]


def novelty(older: list[float], newest: list[float]) -> float:
    """Novelty (0 to 1) of the newest frames, from the avatar's PSNRs (dB) on them (``newest``) and on older frames."""
    if not older or not newest:
        return 0.0
    usual = fmean(sorted(older)[len(older) // 2 :])  # the worse half of the older ones may be novel as well
    return min(1.0, max(0.0, (usual - fmean(newest) - NOVELTY_OFFSET_DB) / NOVELTY_RANGE_DB))


@dataclass(frozen=True)
class TrainingEvent:
    """Return of training to an earlier state; ``text`` is one line for people."""

    kind: Outcome
    text: str


class SnapshotGate:
    """Measures candidate snapshots on held-back frames and publishes those that are not worse.

    Used by the training thread.

    Attributes:
        published_state: training state of the published snapshot.
        score: PSNR of the published snapshot and of the mesh on held-back frames; None before it is measured.
        counts: number of candidates by decision (`Verdict`), and of "roll back".
        published_at: monotonic second of the last publication; -inf before the first.
        events: queue of returns to earlier weights; the reader removes them.
        state: state machine of publishing.
    """

    def __init__(
        self, trainer: Trainer, meter: LikenessMeter, held_back: HeldBackSet, exchange: WeightExchange
    ) -> None:
        self.published_state: TrainingState
        self.score: LikenessScore | None = None
        self.counts: Counter[str] = Counter()
        self.published_at = -math.inf
        self.events: deque[TrainingEvent] = deque(maxlen=16)
        self.state = PublishState()
        self._trainer, self._meter, self._held_back, self._exchange = trainer, meter, held_back, exchange
        self._measuring: Iterator[None] | None = None
        self._due, self._began = -math.inf, math.inf
        self._measure_due = -math.inf
        self._novelty = 0.0
        self._number = 0  # of the published snapshot
        self._frame_s = 0.0  # running mean of the seconds that measuring one frame takes
        self._now = 0.0
        with trainer.on_stream():
            self.published_state = trainer.state()

    @property
    def in_doubt(self) -> bool:
        """Whether the newest candidates were worse than the published snapshot."""
        return self.state.in_a_row > 0

    def state_to_save(self) -> TrainingState:
        """The newest training state, or the published one if the newest is `in_doubt` or not finite."""
        if self.in_doubt or self._trainer.steps == self.published_state.steps:
            return self.published_state
        with self._trainer.on_stream():
            state = self._trainer.state()
            return state if state.is_valid() else self.published_state

    def on_step(self, report: StepReport | None, now: float) -> None:
        """Check the loss of a training step and set the learning rate; rolls back if the loss is not finite.

        ``report`` is None if the step did nothing; ``now`` is in monotonic seconds.
        """
        self._now = now
        if report is not None and report.samples > 0 and not math.isfinite(report.loss):
            self._roll_back("a loss that is not a finite number")
        self._trainer.schedule.rate_factor = self._rate_factor(now)

    def run_once(self, mesh: ColouredMesh | None, now: float) -> bool:
        """Continue measuring a candidate, or begin with a new one if it is due at monotonic second ``now``.

        ``mesh`` is measured for comparison.  False if nothing was done.
        """
        self._now = now
        if self._measuring is None:
            young = self._trainer.steps < FIRST_STEPS
            if young or now < self._due or self._trainer.steps == self.published_state.steps:
                return False
            self._began = min(self._began, now)
            self._due = now + (EARLY_PUBLISH_S if now - self._began < EARLY_S else PUBLISH_S)
            self._measuring = self._measure_candidate(mesh)
        began = time.monotonic()
        self._continue_measuring(began)
        # Delays the next candidate so that measuring stays within its share of the time.
        self._due += (time.monotonic() - began) * (1.0 / MEASURE_TIME_SHARE - 1.0)
        return True

    def measure_published(self, mesh: ColouredMesh | None, now: float) -> bool:
        """Continue measuring the published snapshot of an avatar that is not trained.  False if nothing was done.

        Measured every `PUBLISH_S` until there are `likeness.RECENT` held-back frames, then every `FROZEN_MEASURE_S`.
        """
        self._now = now
        if self._measuring is None:
            if now < self._measure_due:
                return False
            self._measure_due = now + PUBLISH_S
            self._measuring = self._measure_shown(mesh)
        self._continue_measuring(time.monotonic())
        return True

    def _continue_measuring(self, began: float) -> None:
        """Measure one frame on a GPU; on a CPU, where the display has its own cores, as many as fit in `SLICE_S`."""
        on_gpu = self._trainer.model.device.type == "cuda"
        while self._measuring is not None:
            try:
                next(self._measuring)
            except StopIteration:
                self._measuring = None
            if on_gpu or time.monotonic() - began > SLICE_S:
                return

    def _measure_candidate(self, mesh: ColouredMesh | None) -> Iterator[None]:
        with self._trainer.on_stream():
            candidate = self._trainer.state()
            valid = candidate.is_valid()
        if not valid:
            self._roll_back("weights that are not finite or too large")
            return
        known = self._held_back.frames()
        frames = select_frames(known, self._frame_count())
        if not frames:
            self._publish(candidate)
            return
        self._load(candidate.shown)
        yield
        measured = []
        for held in frames:
            began = time.monotonic()
            measured.append(self._meter.avatar_db(held))
            self._frame_s += 0.2 * (time.monotonic() - began - self._frame_s)
            yield
        yield from self._measure_missing(frames, mesh)
        published = finite_mean([held.published_db[1] for held in frames]) if len(frames) >= MIN_FRAMES else None
        self.state, outcome = self.state.decide(finite_mean(measured), published, self._now)
        if outcome is Outcome.PUBLISHED:
            self._publish(candidate)
            for held, value in zip(frames, measured, strict=True):
                held.published_db = (self._number, value)
            self._update_score(known)
            newest = max(1, len(measured) // 4)
            self._novelty = novelty(measured[:-newest], measured[-newest:])
            return
        self.counts[outcome] += 1
        self._update_score(known)
        if outcome is Outcome.STEPPED_BACK:
            loss = (published or 0.0) - (finite_mean(measured) or 0.0)
            self._resume()
            # If the scene changed instead, older frames must not keep the avatar from learning it.
            self._held_back.drop_older()
            self._add_event(
                Outcome.STEPPED_BACK,
                f"the last training steps made the avatar worse by {loss:.1f} dB; training continues from step "
                f"{self.published_state.steps}, more slowly for {SLOW_S:.0f} s",
            )

    def _measure_shown(self, mesh: ColouredMesh | None) -> Iterator[None]:
        known = self._held_back.frames()
        frames = select_frames(known, self._frame_count())
        if len(known) >= RECENT:
            self._measure_due = self._now + FROZEN_MEASURE_S
        yield from self._measure_missing(frames, mesh)
        self._update_score(known)

    def _measure_missing(self, frames: list[HeldBackFrame], mesh: ColouredMesh | None) -> Iterator[None]:
        """Measure the published snapshot and the mesh on those frames on which they were not measured yet."""
        untrained = self._number == 0 and self.published_state.steps == 0
        missing = [held for held in frames if held.published_db[0] != self._number and not untrained]
        if missing:
            self._load(self.published_state.shown)
            yield
        for held in missing:
            held.published_db = (self._number, self._meter.avatar_db(held))
            yield
        if mesh is None:
            return
        # The mesh changes often but little: of the frames measured with an earlier mesh, one is measured again.
        earlier = [held for held in frames if held.mesh is not None and held.mesh is not mesh]
        for held in [*(held for held in frames if held.mesh is None), *earlier[:1]]:
            held.mesh, held.mesh_db = mesh, self._meter.mesh_db(held, mesh)
            yield

    def _frame_count(self) -> int:
        """Number of held-back frames on which a candidate is measured."""
        if self._trainer.steps < EARLY_STEPS:
            return 1
        return max(MIN_FRAMES, int(MEASURE_TIME_SHARE * MEASURE_PERIOD_S / max(self._frame_s, 1e-6)))

    def _update_score(self, frames: list[HeldBackFrame]) -> None:
        """Set the score to the mean of the newest measurement of each frame; some may be from earlier rounds."""
        both = [held for held in frames if math.isfinite(held.published_db[1] + held.mesh_db)]
        avatar_db = finite_mean([held.published_db[1] for held in both])
        mesh_db = finite_mean([held.mesh_db for held in both])
        if avatar_db is not None and mesh_db is not None:
            self.score = LikenessScore(avatar_db, mesh_db, self.published_state.steps)

    def _load(self, snapshot: Snapshot) -> None:
        with self._trainer.on_stream():
            self._meter.load(snapshot)

    def _publish(self, candidate: TrainingState) -> None:
        self.published_state = candidate
        self._number += 1
        self.counts[Outcome.PUBLISHED] += 1
        self.published_at = self._now
        with self._trainer.on_stream():
            self._exchange.publish(candidate.shown)

    def _roll_back(self, reason: str) -> None:
        self._measuring = None
        self.state = self.state.rolled_back(self._now)
        self.counts[Outcome.ROLLED_BACK] += 1
        self._resume()
        self._add_event(
            Outcome.ROLLED_BACK, f"training produced {reason}; it continues from step {self.published_state.steps}"
        )

    def _resume(self) -> None:
        self._novelty = 0.0  # a higher rate for novel frames may have caused the failure
        with self._trainer.on_stream():
            self._trainer.resume(self.published_state)

    def _add_event(self, kind: Outcome, text: str) -> None:
        self.events.append(TrainingEvent(kind, text))

    def _rate_factor(self, now: float) -> float:
        """Factor on the learning rate of the schedule at second ``now``."""
        return self.state.rate_factor(now) * novelty_rate_factor(self._trainer, self._novelty)


def novelty_rate_factor(trainer: Trainer, novelty: float) -> float:
    """Factor on the scheduled learning rate for newest frames of this ``novelty`` (0 to 1).

    Novelty 0 gives 1; novelty 1 cancels the decay of the schedule.  Known frames are not degraded by the higher rate
    while replay still draws them, because their gradients cancel and the published weights are an average.
    """
    config = trainer.config
    progress = trainer.schedule.progress_at(trainer.steps)
    return config.final_rate ** (-novelty * progress) if config.final_rate > 0.0 else 1.0

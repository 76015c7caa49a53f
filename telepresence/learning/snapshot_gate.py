"""Which weights are shown: each candidate is judged first, and what went wrong is undone.

About once a second the averaged weights become a candidate.  It is published unless it renders held-back pictures
(`score.HeldBackSet`) worse than what is shown does; after some in a row that did, training steps back to the state of the
last that was published, and goes on more slowly for a while.  Weights or losses that are no numbers take it back there
at once.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean
from typing import TYPE_CHECKING, Final

from telepresence.learning.likeness import RECENT, HeldBackFrame, HeldBackSet, LikenessMeter, LikenessScore, mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from insta_runtime.learn.trainer import StepReport, Trainer
    from insta_runtime.learn.training_state import TrainingState
    from insta_runtime.learn.weight_exchange import WeightExchange
    from insta_runtime.render.coloured_mesh import ColouredMesh
    from insta_runtime.render.renderer import Snapshot

log = logging.getLogger("telepresence")

PUBLISH_S: Final = 1.0
"""Seconds between candidates at least ..."""
EAGER_S: Final = 0.5
"""... and in the beginning, when each is much better than the last ..."""
BEGINNING_S: Final = 10.0
"""... which is so long."""
JUDGE_PART: Final = 0.15
"""Part of the time that judging may take: a slow machine looks at fewer pictures ..."""
JUDGE_S: Final = 2.5
"""... so that candidates come about so often all the same."""
MEASURE_S: Final = 30.0
"""Seconds between measurements of an avatar that is not learned on: it changes no more, only the pictures do."""
SLICE_S: Final = 0.3
"""On a CPU judging goes on for so long at a time; on a GPU, which the display needs, it is one picture."""
YOUNG_STEPS: Final = 64
"""Until then everything gets better quickly: one picture will do."""
ENOUGH: Final = 3
"""Of fewer pictures no candidate is called worse."""
FIRST_STEPS: Final = 8
"""A new avatar is not worth showing before so many steps."""
MARGIN_DB: Final = 0.3
"""A candidate that is worse than what is shown by more than this is withheld."""
PATIENCE: Final = 5
"""After so many withheld in a row training steps back."""
SLOW: Final = 0.3
"""What the learning rate is multiplied by after a step back ..."""
SLOW_S: Final = 30.0
"""... and over how many seconds it comes back."""
NEW_DB: Final = 3.0
"""Pictures differ: the newest may be rendered worse than the better half of the others by so much and be no news."""
NEWS_DB: Final = 4.0
"""Beyond that, so much more makes them news altogether."""


class Verdict(StrEnum):
    """What is done with a candidate."""

    PUBLISH = "publish"
    WITHHOLD = "withhold"
    STEP_BACK = "step back"


@dataclass(frozen=True)
class PublishState:
    """Where publishing stands: a pure function of what was found, and when.

    Attributes:
        in_a_row: candidates withheld since the last that was published.
        slowed: when training last had to go back, seconds; None if it never did.
    """

    in_a_row: int = 0
    slowed: float | None = None

    def judged(self, candidate_db: float | None, shown_db: float | None, now: float) -> tuple[PublishState, Verdict]:
        """A candidate and what is shown were measured on the same pictures; None: they could not be."""
        if candidate_db is None or shown_db is None or candidate_db >= shown_db - MARGIN_DB:
            return replace(self, in_a_row=0), Verdict.PUBLISH
        if self.in_a_row + 1 < PATIENCE:
            return replace(self, in_a_row=self.in_a_row + 1), Verdict.WITHHOLD
        return PublishState(0, now), Verdict.STEP_BACK

    def went_back(self, now: float) -> PublishState:
        """Training had to go back for another reason."""
        return PublishState(0, now)

    def caution(self, now: float) -> float:
        """What the learning rate is multiplied by, 1 long after the last step back."""
        if self.slowed is None:
            return 1.0
        return SLOW ** min(1.0, max(0.0, 1.0 - (now - self.slowed) / SLOW_S))


def chosen(pictures: list[HeldBackFrame], room: int) -> list[HeldBackFrame]:
    """At most ``room`` of the pictures, half of them the newest."""
    older, recent = pictures[:-RECENT], pictures[-RECENT:]
    recent = recent[-max(room - len(older), room - room // 2) :]
    spare = room - len(recent)
    return [*(older[-spare:] if spare > 0 else []), *recent]


def novelty(older: list[float], newest: list[float]) -> float:
    """How much the newest pictures are news, 0 to 1, from PSNRs (dB) of the avatar on them and on others."""
    if not older or not newest:
        return 0.0
    usual = fmean(sorted(older)[len(older) // 2 :])  # of the others some may be news, too
    return min(1.0, max(0.0, (usual - fmean(newest) - NEW_DB) / NEWS_DB))


@dataclass(frozen=True)
class TrainingEvent:
    """Something that happened to the avatar's weights, as a line for people; ``kind`` names it for machines."""

    kind: str
    text: str


class SnapshotGate:
    """Judges candidates of ``trainer`` on ``held_back`` and publishes them.  Belongs to the training thread.

    Attributes:
        good: the training's state when what is shown was learned.
        score: of what is shown.  counts: candidates by what became of them; published_at: the last one's second.
        events: what happened that somebody should know of; whoever tells it takes it out.
    """

    def __init__(self, trainer: Trainer, judge: LikenessMeter, held_back: HeldBackSet, exchange: WeightExchange) -> None:
        self.good: TrainingState
        self.score: LikenessScore | None = None
        self.counts: Counter[str] = Counter()
        self.published_at = -math.inf
        self.events: deque[TrainingEvent] = deque(maxlen=16)
        self.status = PublishState()
        self._trainer, self._judge, self._held_back, self._exchange = trainer, judge, held_back, exchange
        self._work: Iterator[None] | None = None
        self._due, self._began = -math.inf, math.inf
        self._measure_due = -math.inf
        self._news = 0.0
        self._number = 0  # of what is shown
        self._each_s = 0.0  # what measuring a picture takes
        self._now = 0.0
        with trainer.on_stream():
            self.good = trainer.state()

    @property
    def in_doubt(self) -> bool:
        """Whether what was learned since the last publication is worse than that."""
        return self.status.in_a_row > 0

    def newest(self) -> TrainingState:
        """What is worth saving: all that was learned, unless it is in doubt."""
        if self.in_doubt or self._trainer.steps == self.good.steps:
            return self.good
        with self._trainer.on_stream():
            state = self._trainer.state()
            return state if state.is_sound() else self.good

    def watch(self, report: StepReport | None, now: float) -> None:
        """A step was done: go back at once if its loss is no number."""
        self._now = now
        if report is not None and report.samples > 0 and not math.isfinite(report.loss):
            self._go_back("a loss that is no number")
        self._trainer.schedule.rate_factor = self._pace(now)

    def work(self, mesh: ColouredMesh | None, now: float) -> bool:
        """Do a little of what is due.  False if there was nothing."""
        self._now = now
        if self._work is None:
            young = self._trainer.steps < FIRST_STEPS
            if young or now < self._due or self._trainer.steps == self.good.steps:
                return False
            self._began = min(self._began, now)
            self._due = now + (EAGER_S if now - self._began < BEGINNING_S else PUBLISH_S)
            self._work = self._consider(mesh)
        began = time.monotonic()
        self._go_on(began)
        # What it takes, all candidates together are to make up for.
        self._due += (time.monotonic() - began) * (1.0 / JUDGE_PART - 1.0)
        return True

    def measure(self, mesh: ColouredMesh | None, now: float) -> bool:
        """Do a little of measuring what is shown, for whoever does not learn.  False if there was nothing to do.

        As soon as there are enough pictures to tell, it is seldom done.
        """
        self._now = now
        if self._work is None:
            if now < self._measure_due:
                return False
            self._measure_due = now + PUBLISH_S
            self._work = self._measure_shown(mesh)
        self._go_on(time.monotonic())
        return True

    def _go_on(self, began: float) -> None:
        """Do a part of what is under way; on a CPU some, as the display has cores of its own."""
        on_gpu = self._trainer.model.device.type == "cuda"
        while self._work is not None:
            try:
                next(self._work)
            except StopIteration:
                self._work = None
            if on_gpu or time.monotonic() - began > SLICE_S:
                return

    def _consider(self, mesh: ColouredMesh | None) -> Iterator[None]:
        with self._trainer.on_stream():
            candidate = self._trainer.state()
            sound = candidate.is_sound()
        if not sound:
            self._go_back("weights that are no numbers, or too large ones")
            return
        known = self._held_back.pictures()
        pictures = chosen(known, self._room())
        if not pictures:
            self._publish(candidate)
            return
        self._load(candidate.shown)
        yield
        found = []
        for held in pictures:
            began = time.monotonic()
            found.append(self._judge.avatar_db(held))
            self._each_s += 0.2 * (time.monotonic() - began - self._each_s)
            yield
        yield from self._complete(pictures, mesh)
        shown = mean([held.shown_db[1] for held in pictures]) if len(pictures) >= ENOUGH else None
        self.status, verdict = self.status.judged(mean(found), shown, self._now)
        if verdict is Verdict.PUBLISH:
            self._publish(candidate)
            for held, value in zip(pictures, found, strict=True):
                held.shown_db = (self._number, value)
            self._tell(known)
            newest = max(1, len(found) // 4)
            self._news = novelty(found[:-newest], found[-newest:])
            return
        self.counts[verdict] += 1
        self._tell(known)
        if verdict is Verdict.STEP_BACK:
            loss = (shown or 0.0) - (mean(found) or 0.0)
            self._resume()
            # If that was no fault of learning, what is long past must not hold it back for ever.
            self._held_back.forget_older()
            self._note(
                "stepped back",
                f"what was learned last made the avatar worse by {loss:.1f} dB; learning goes on from step "
                f"{self.good.steps}, more slowly for {SLOW_S:.0f} s",
            )

    def _measure_shown(self, mesh: ColouredMesh | None) -> Iterator[None]:
        known = self._held_back.pictures()
        pictures = chosen(known, self._room())
        if len(known) >= RECENT:
            self._measure_due = self._now + MEASURE_S
        yield from self._complete(pictures, mesh)
        self._tell(known)

    def _complete(self, pictures: list[HeldBackFrame], mesh: ColouredMesh | None) -> Iterator[None]:
        """Measure what is shown, and the mesh, on those pictures on which they were not yet."""
        nothing = self._number == 0 and self.good.steps == 0
        missing = [held for held in pictures if held.shown_db[0] != self._number and not nothing]
        if missing:
            self._load(self.good.shown)
            yield
        for held in missing:
            held.shown_db = (self._number, self._judge.avatar_db(held))
            yield
        if mesh is None:
            return
        # It changes often, and little: of those that were measured with an earlier one, only one is measured again.
        earlier = [held for held in pictures if held.mesh is not None and held.mesh is not mesh]
        for held in [*(held for held in pictures if held.mesh is None), *earlier[:1]]:
            held.mesh, held.mesh_db = mesh, self._judge.mesh_db(held, mesh)
            yield

    def _room(self) -> int:
        """How many pictures to measure on."""
        if self._trainer.steps < YOUNG_STEPS:
            return 1
        return max(ENOUGH, int(JUDGE_PART * JUDGE_S / max(self._each_s, 1e-6)))

    def _tell(self, pictures: list[HeldBackFrame]) -> None:
        """Make the score of what was found last on each of these: some may not have been measured just now."""
        both = [held for held in pictures if math.isfinite(held.shown_db[1] + held.mesh_db)]
        avatar_db, mesh_db = mean([held.shown_db[1] for held in both]), mean([held.mesh_db for held in both])
        if avatar_db is not None and mesh_db is not None:
            self.score = LikenessScore(avatar_db, mesh_db, self.good.steps)

    def _load(self, snapshot: Snapshot) -> None:
        with self._trainer.on_stream():
            self._judge.load(snapshot)

    def _publish(self, candidate: TrainingState) -> None:
        self.good = candidate
        self._number += 1
        self.counts[Verdict.PUBLISH] += 1
        self.published_at = self._now
        with self._trainer.on_stream():
            self._exchange.publish(candidate.shown)

    def _go_back(self, why: str) -> None:
        self._work = None
        self.status = self.status.went_back(self._now)
        self.counts["roll back"] += 1
        self._resume()
        self._note("rolled back", f"learning came to {why}; it goes on from step {self.good.steps}")

    def _resume(self) -> None:
        self._news = 0.0  # they may have been what did it
        with self._trainer.on_stream():
            self._trainer.resume(self.good)

    def _note(self, kind: str, text: str) -> None:
        self.events.append(TrainingEvent(kind, text))
        log.warning("%s", text, extra={"event": kind.replace(" ", "_"), "stage": "train"})

    def _pace(self, now: float) -> float:
        """What the schedule's learning rate is multiplied by."""
        return self.status.caution(now) * rise(self._trainer, self._news)


def rise(trainer: Trainer, news: float) -> float:
    """What the rate is multiplied by for the sake of ``news`` (0 to 1): all of it takes back what the schedule took.

    What is not new is not shaken by that, as long as it is drawn, too: its gradients cancel, and what is shown is an
    average.
    """
    config = trainer.config
    progress = trainer.schedule.progress_at(trainer.steps)
    return config.final_rate ** (-news * progress) if config.final_rate > 0.0 else 1.0

"""What is shown never gets worse: candidates are judged, learning steps back, and numbers that are none are undone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from insta_runtime.avatar import Avatar
from insta_runtime.backends import choose_backend, make_trainer
from insta_runtime.learn.trainer import StepReport
from insta_runtime.learn.weight_exchange import WeightExchange
from insta_runtime.native.trainer import NativeTrainer
from insta_runtime.render.coloured_mesh import ColouredMesh
from insta_runtime.types import Observation
from telepresence.learning.likeness import OLDER, RECENT, HeldBackFrame, HeldBackSet, LikenessMeter, look
from telepresence.learning.snapshot_gate import (
    MARGIN_DB,
    MEASURE_S,
    PATIENCE,
    SLOW,
    SLOW_S,
    YOUNG_STEPS,
    SnapshotGate,
    PublishState,
    Verdict,
    chosen,
    novelty,
)
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, paint, performance, photograph, pose

CONFIG = replace(SMALL, learn=replace(SMALL.learn, rays=256, size=32))


@pytest.fixture(scope="module")
def pictures() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), 10), 32, paint(open_head()))


class Call:
    """A publisher at work, with a clock that is turned by hand."""

    def __init__(self, pictures: list[Observation], steps: int) -> None:
        avatar = Avatar.create(open_head(), neutral_shape(open_head()), camera(32), CONFIG, "cpu")
        backend = choose_backend("host", avatar.model)
        trainer = make_trainer(avatar.model, backend)
        assert isinstance(trainer, NativeTrainer)
        self.trainer, self.exchange, self.held_back = trainer, WeightExchange(), HeldBackSet()
        self.mesh = ColouredMesh(avatar.model.rig, avatar.model.shape)
        self.now = 0.0
        for i, picture in enumerate(pictures):
            if i % 3:
                trainer.add(picture)
                self.mesh.observe(picture)
            else:
                self.held_back.add(picture)
        self.publisher = SnapshotGate(trainer, LikenessMeter(avatar.model, backend), self.held_back, self.exchange)
        self.learn(steps)

    def learn(self, steps: int) -> None:
        for _ in range(steps):
            self.publisher.watch(self.trainer.step(), self.now)

    def judge(self) -> None:
        """One candidate, from the first look at it to the verdict."""
        self.now += 100.0
        before = sum(self.publisher.counts.values())
        while sum(self.publisher.counts.values()) == before:
            assert self.publisher.work(self.mesh, self.now)

    def spoil(self) -> None:
        """Learning goes wrong: colours become others."""
        self.trainer._parameters[-3:] += 4.0
        self.trainer._averaged[-3:] += 4.0


def test_what_is_better_is_published_and_scored(pictures: list[Observation]) -> None:
    call = Call(pictures, 10)
    assert not call.publisher.published_at > 0
    call.judge()
    first = call.publisher.score
    assert first is not None
    assert first.steps == 10
    call.learn(YOUNG_STEPS)
    call.judge()
    second = call.publisher.score
    assert second is not None
    assert second.avatar_db > first.avatar_db + 1.0
    assert (call.exchange.published, call.publisher.counts) == (2, {"publish": 2})
    shown = call.exchange.take()
    assert shown is not None
    assert torch.equal(shown["grid.table"], call.publisher.good.shown["grid.table"])
    assert not call.publisher.work(call.mesh, call.now + 100.0), "nothing was learned since"
    call.learn(1)
    assert not call.publisher.work(call.mesh, call.now), "it is not time"


def test_what_is_worse_is_withheld_then_undone(pictures: list[Observation]) -> None:
    call = Call(pictures, YOUNG_STEPS)
    call.judge()
    good, score = call.publisher.good, call.publisher.score
    call.spoil()
    for number in range(PATIENCE):
        assert call.exchange.published == 1
        assert call.trainer.steps == YOUNG_STEPS + number
        call.trainer.schedule.rate_factor = 0.0  # or it would learn to be right again
        call.trainer.step()
        assert not call.publisher.events
        call.judge()
        assert call.publisher.in_doubt == (number < PATIENCE - 1)
    assert call.exchange.published == 1
    assert call.publisher.counts == {"publish": 1, "withhold": PATIENCE - 1, "step back": 1}
    assert call.trainer.steps == good.steps
    for name, tensor in call.trainer.state().weights.items():
        assert torch.equal(tensor, good.weights[name])
    assert call.publisher.score == score
    (event,) = call.publisher.events
    assert event.kind == "stepped back"
    assert f"step {good.steps}" in event.text
    call.publisher.watch(None, call.now)
    assert call.trainer.schedule.rate_factor < 2 * SLOW, "more slowly for a while"
    call.publisher.watch(None, call.now + 10 * SLOW_S)
    assert call.trainer.schedule.rate_factor == 1.0
    call.learn(20)
    call.judge()
    assert call.exchange.published == 2, "and it goes on"


def test_what_is_worth_saving_is_what_is_not_in_doubt(pictures: list[Observation]) -> None:
    call = Call(pictures, YOUNG_STEPS)
    call.judge()
    call.learn(2)
    assert call.publisher.newest().steps == YOUNG_STEPS + 2
    call.spoil()
    call.judge()
    assert call.publisher.newest() is call.publisher.good
    assert call.publisher.good.steps == YOUNG_STEPS


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e6])
def test_weights_that_are_no_numbers_are_undone_at_once(pictures: list[Observation], poison: float) -> None:
    call = Call(pictures, 20)
    call.judge()
    good = call.publisher.good
    call.trainer._parameters[7] = poison
    call.learn(1)
    if not call.publisher.events:  # the loss did not tell
        call.trainer._averaged[7] = poison
        call.judge()
    (event,) = call.publisher.events
    assert event.kind == "rolled back"
    assert call.publisher.counts["roll back"] == 1
    assert (call.exchange.published, call.trainer.steps) == (1, good.steps)
    assert call.trainer.state().is_sound()
    call.learn(5)
    assert call.trainer.schedule.rate_factor < 2 * SLOW
    call.judge()
    assert call.exchange.published == 2
    assert call.publisher.good.is_sound()


def test_a_loss_that_is_no_number_is_undone_at_once(pictures: list[Observation]) -> None:
    call = Call(pictures, 20)
    call.judge()
    call.learn(3)
    call.publisher.watch(StepReport(24, math.nan, 256, 0), call.now)  # a GPU that has not told yet
    assert call.trainer.steps == 23
    call.publisher.watch(StepReport(24, math.nan, 256, 1000), call.now)
    assert call.trainer.steps == 20
    assert [event.kind for event in call.publisher.events] == ["rolled back"]


def test_what_is_seen_first_after_a_while_is_learned_at_the_rate_of_the_beginning(pictures: list[Observation]) -> None:
    call = Call(pictures, CONFIG.learn.decay_steps)
    call.judge()
    call.learn(1)
    assert call.trainer.schedule.rate_factor < 1.5
    for picture in pictures[:3]:
        call.held_back.add(replace(picture, rgb=255 - picture.rgb))
    call.judge()
    call.learn(1)
    first = 1.0 / CONFIG.learn.final_rate
    assert 0.35 * first < call.trainer.schedule.rate_factor <= 1.01 * first


def test_an_avatar_that_is_not_learned_on_is_measured(pictures: list[Observation]) -> None:
    call = Call(pictures, 30)
    call.judge()
    found = call.publisher.score
    assert found is not None
    frozen = SnapshotGate(call.trainer, call.publisher._judge, call.held_back, call.exchange)
    while frozen.score is None:
        assert frozen.measure(call.mesh, 0.0)
    assert frozen.score.avatar_db == pytest.approx(found.avatar_db)
    assert call.exchange.published == 1


class Counting(LikenessMeter):
    """Counts the pictures that it draws."""

    drawn = 0

    def avatar_db(self, held: HeldBackFrame) -> float:
        self.drawn += 1
        return super().avatar_db(held)

    def mesh_db(self, held: HeldBackFrame, mesh: ColouredMesh) -> float:
        self.drawn += 1
        return super().mesh_db(held, mesh)


def test_an_avatar_that_is_not_learned_on_is_seldom_measured(pictures: list[Observation]) -> None:
    call = Call([], 0)
    for picture in pictures:
        call.trainer.add(picture)
        call.mesh.observe(picture)
    call.learn(YOUNG_STEPS)
    model = call.publisher._judge._renderer.model
    judge = Counting(model, choose_backend("host", model))
    frozen = SnapshotGate(call.trainer, judge, call.held_back, call.exchange)
    drawn = []
    for second in range(120):  # of a call that goes on to show something new
        call.held_back.add(pictures[second % len(pictures)])
        before = judge.drawn
        while frozen.measure(call.mesh, float(second)):
            pass
        drawn.append(judge.drawn - before)
    assert all(drawn[:RECENT]), "whether it is good enough to be shown is to be known soon"
    assert frozen.score is not None
    assert sum(map(bool, drawn[RECENT:])) == (120 - RECENT) // MEASURE_S
    assert max(drawn) <= 2 * RECENT + 1, "nor is it made up for"

    call.learn(1)
    assert frozen.work(call.mesh, 120.0), "what is learned on is judged at once"


# ---- the rules, without an avatar


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-3.0, 3.0), max_size=40))
def test_nothing_that_is_worse_is_ever_published(gains: list[float]) -> None:
    standing, row = PublishState(), 0
    for second, gain in enumerate(gains):
        standing, verdict = standing.judged(20.0 + gain, 20.0, float(second))
        if gain >= -0.99 * MARGIN_DB:
            assert verdict is Verdict.PUBLISH
        if gain < -1.01 * MARGIN_DB:
            assert verdict is not Verdict.PUBLISH
            row += 1
            assert (verdict is Verdict.STEP_BACK) == (row == PATIENCE)
        if verdict is not Verdict.WITHHOLD:
            row = 0
        assert SLOW <= standing.caution(float(second)) <= 1.0


def test_what_cannot_be_measured_is_published() -> None:
    for pair in ((None, None), (None, 20.0), (20.0, None)):
        assert PublishState(in_a_row=3).judged(*pair, 0.0) == (PublishState(), Verdict.PUBLISH)


def test_caution_fades() -> None:
    standing = PublishState().went_back(10.0)
    values = [standing.caution(10.0 + part * SLOW_S) for part in (0.0, 0.5, 1.0, 5.0)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (SLOW, 1.0)


def test_news_is_what_is_rendered_much_worse_than_the_rest() -> None:
    assert novelty([25.0, 24.0, 26.0], [24.5, 23.5]) == 0.0
    assert novelty([25.0, 25.0], [12.0, 12.0]) == 1.0
    assert 0.0 < novelty([15.0, 25.0], [20.0, 20.5]) < 1.0
    assert novelty([], [12.0]) == novelty([25.0], []) == 0.0


def test_held_back_pictures_are_the_newest_and_older_ones_that_differ(pictures: list[Observation]) -> None:
    held_back, turned = HeldBackSet(), []
    still = photograph(open_head(), [pose(open_head())], 32, paint(open_head()))[0]
    for i in range(40):
        turned.append(i % 10 == 3)
        held_back.add(replace(pictures[i // 10 * 2 + 1] if turned[-1] else still, frame_id=i))
        kept = held_back.pictures()
    assert len(kept) == RECENT + OLDER
    older = kept[:OLDER]
    looks = np.stack([look(held.state) for held in older])
    apart = np.linalg.norm(looks[:, None] - looks, axis=-1)[~np.eye(OLDER, dtype=bool)]
    assert apart.min() > 0.05, "none of them twice, though most pictures were alike"
    held_back.forget_older()
    assert [held.state for held in held_back.pictures()] == [held.state for held in kept[OLDER:]]


def test_on_a_slow_machine_fewer_pictures_are_measured(pictures: list[Observation]) -> None:
    held = [HeldBackFrame.of(picture, 32) for picture in pictures[:8]]
    assert chosen(held, 8) == chosen(held, 99) == held
    assert chosen(held, 1) == held[7:]
    assert chosen(held, 2) == [held[3], held[7]]
    assert chosen(held, 5) == [held[2], held[3], *held[5:]]
    assert chosen(held[:3], 2) == held[1:3]
    assert chosen(held[:5], 4) == [held[0], *held[2:5]]
    assert chosen([], 4) == []

"""Publishing of snapshots: worse candidates are withheld, training steps back, non-finite values are rolled back."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from insta_runtime.avatar import Avatar
from insta_runtime.backends import choose_backend, make_trainer
from insta_runtime.learn.trainer_interface import StepReport
from insta_runtime.learn.weight_exchange import WeightExchange
from insta_runtime.native.trainer import NativeTrainer
from insta_runtime.render.coloured_mesh import ColouredMesh
from insta_runtime.types import Observation
from telepresence.learning import snapshot_gate
from telepresence.learning.likeness import OLDER, RECENT, HeldBackFrame, HeldBackSet, LikenessMeter, state_features
from telepresence.learning.snapshot_gate import (
    EARLY_STEPS,
    FROZEN_MEASURE_S,
    MARGIN_DB,
    MAX_WITHHELD,
    SLOW_FACTOR,
    SLOW_S,
    Outcome,
    PublishState,
    SnapshotGate,
    novelty,
    select_frames,
)
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, paint, performance, photograph, pose

CONFIG = replace(SMALL, learn=replace(SMALL.learn, rays=256, size=32))


@pytest.fixture(autouse=True)
def measuring_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock with which measurements are timed: on a busy machine fewer frames would be measured."""
    monkeypatch.setattr(snapshot_gate, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture(scope="module")
def pictures() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), 10), 32, paint(open_head()))


class Call:
    """A snapshot gate with a trainer and a clock that the test sets."""

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
        self.gate = SnapshotGate(trainer, LikenessMeter(avatar.model, backend), self.held_back, self.exchange)
        self.learn(steps)

    def learn(self, steps: int) -> None:
        for _ in range(steps):
            self.gate.on_step(self.trainer.step(), self.now)

    def measure_candidate(self) -> None:
        """Measure one candidate until the decision about it."""
        self.now += 100.0
        before = sum(self.gate.counts.values())
        while sum(self.gate.counts.values()) == before:
            assert self.gate.run_once(self.mesh, self.now)

    def spoil(self) -> None:
        """Spoil the weights: all colours change."""
        self.trainer._parameters[-3:] += 4.0
        self.trainer._averaged[-3:] += 4.0


def test_a_better_candidate_is_published_and_scored(pictures: list[Observation]) -> None:
    call = Call(pictures, 10)
    assert not call.gate.published_at > 0
    call.measure_candidate()
    first = call.gate.score
    assert first is not None
    assert first.steps == 10
    call.learn(EARLY_STEPS)
    call.measure_candidate()
    second = call.gate.score
    assert second is not None
    assert second.avatar_db > first.avatar_db + 1.0
    assert (call.exchange.published, call.gate.counts) == (2, {"published": 2})
    shown = call.exchange.take()
    assert shown is not None
    assert torch.equal(shown["grid.table"], call.gate.published_state.shown["grid.table"])
    assert not call.gate.run_once(call.mesh, call.now + 100.0), "no step since the last candidate"
    call.learn(1)
    assert not call.gate.run_once(call.mesh, call.now), "the next candidate is not due"


def test_worse_candidates_are_withheld_then_undone(pictures: list[Observation]) -> None:
    call = Call(pictures, EARLY_STEPS)
    call.measure_candidate()
    good, score = call.gate.published_state, call.gate.score
    call.spoil()
    for number in range(MAX_WITHHELD):
        assert call.exchange.published == 1
        assert call.trainer.steps == EARLY_STEPS + number
        call.trainer.schedule.rate_factor = 0.0  # otherwise training would repair the colours
        call.trainer.step()
        assert not call.gate.events
        call.measure_candidate()
        assert call.gate.in_doubt == (number < MAX_WITHHELD - 1)
    assert call.exchange.published == 1
    assert call.gate.counts == {"published": 1, "withheld": MAX_WITHHELD - 1, "stepped_back": 1}
    assert call.trainer.steps == good.steps
    for name, tensor in call.trainer.state().weights.items():
        assert torch.equal(tensor, good.weights[name])
    assert call.gate.score == score
    (event,) = call.gate.events
    assert event.kind == "stepped_back"
    assert f"step {good.steps}" in event.text
    call.gate.on_step(None, call.now)
    assert call.trainer.schedule.rate_factor < 2 * SLOW_FACTOR, "the learning rate is lower for a while"
    call.gate.on_step(None, call.now + 10 * SLOW_S)
    assert call.trainer.schedule.rate_factor == 1.0
    call.learn(20)
    call.measure_candidate()
    assert call.exchange.published == 2, "and training continues"


def test_a_state_in_doubt_is_not_saved(pictures: list[Observation]) -> None:
    call = Call(pictures, EARLY_STEPS)
    call.measure_candidate()
    call.learn(2)
    assert call.gate.state_to_save().steps == EARLY_STEPS + 2
    call.spoil()
    call.measure_candidate()
    assert call.gate.state_to_save() is call.gate.published_state
    assert call.gate.published_state.steps == EARLY_STEPS


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e6])
def test_weights_that_are_not_finite_are_rolled_back_at_once(pictures: list[Observation], poison: float) -> None:
    call = Call(pictures, 20)
    call.measure_candidate()
    good = call.gate.published_state
    call.trainer._parameters[7] = poison
    call.learn(1)
    if not call.gate.events:  # the loss was finite
        call.trainer._averaged[7] = poison
        call.measure_candidate()
    (event,) = call.gate.events
    assert event.kind == "rolled_back"
    assert call.gate.counts["rolled_back"] == 1
    assert (call.exchange.published, call.trainer.steps) == (1, good.steps)
    assert call.trainer.state().is_valid()
    call.learn(5)
    assert call.trainer.schedule.rate_factor < 2 * SLOW_FACTOR
    call.measure_candidate()
    assert call.exchange.published == 2
    assert call.gate.published_state.is_valid()


def test_a_loss_that_is_not_finite_is_rolled_back_at_once(pictures: list[Observation]) -> None:
    call = Call(pictures, 20)
    call.measure_candidate()
    call.learn(3)
    call.gate.on_step(StepReport(24, math.nan, 256, 0), call.now)  # the loss of a GPU is not known yet
    assert call.trainer.steps == 23
    call.gate.on_step(StepReport(24, math.nan, 256, 1000), call.now)
    assert call.trainer.steps == 20
    assert [event.kind for event in call.gate.events] == ["rolled_back"]


def test_novel_frames_raise_the_learning_rate_to_its_initial_value(pictures: list[Observation]) -> None:
    call = Call(pictures, CONFIG.learn.decay_steps)
    call.measure_candidate()
    call.learn(1)
    assert call.trainer.schedule.rate_factor < 1.5
    for picture in pictures[:3]:
        call.held_back.add(replace(picture, rgb=255 - picture.rgb))
    call.measure_candidate()
    call.learn(1)
    first = 1.0 / CONFIG.learn.final_rate
    assert 0.35 * first < call.trainer.schedule.rate_factor <= 1.01 * first


def test_a_frozen_avatar_is_measured(pictures: list[Observation]) -> None:
    call = Call(pictures, 30)
    call.measure_candidate()
    found = call.gate.score
    assert found is not None
    frozen = SnapshotGate(call.trainer, call.gate._meter, call.held_back, call.exchange)
    while frozen.score is None:
        assert frozen.measure_published(call.mesh, 0.0)
    assert frozen.score.avatar_db == pytest.approx(found.avatar_db)
    assert call.exchange.published == 1


class CountingMeter(LikenessMeter):
    """Counts the frames that it renders."""

    drawn = 0

    def avatar_db(self, held: HeldBackFrame) -> float:
        self.drawn += 1
        return super().avatar_db(held)

    def mesh_db(self, held: HeldBackFrame, mesh: ColouredMesh) -> float:
        self.drawn += 1
        return super().mesh_db(held, mesh)


def test_a_frozen_avatar_is_seldom_measured(pictures: list[Observation]) -> None:
    call = Call([], 0)
    for picture in pictures:
        call.trainer.add(picture)
        call.mesh.observe(picture)
    call.learn(EARLY_STEPS)
    model = call.gate._meter._renderer.model
    meter = CountingMeter(model, choose_backend("host", model))
    frozen = SnapshotGate(call.trainer, meter, call.held_back, call.exchange)
    drawn = []
    for second in range(120):  # of a call with new frames
        call.held_back.add(pictures[second % len(pictures)])
        before = meter.drawn
        while frozen.measure_published(call.mesh, float(second)):
            pass
        drawn.append(meter.drawn - before)
    assert all(drawn[:RECENT]), "the first score is needed soon"
    assert frozen.score is not None
    assert sum(map(bool, drawn[RECENT:])) == (120 - RECENT) // FROZEN_MEASURE_S
    assert max(drawn) <= 2 * RECENT + 1, "a skipped measurement is not made up for"

    call.learn(1)
    assert frozen.run_once(call.mesh, 120.0), "a trained avatar is measured at once"


# ---- the state machine, without an avatar


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-3.0, 3.0), max_size=40))
def test_a_worse_candidate_is_never_published(gains: list[float]) -> None:
    state, row = PublishState(), 0
    for second, gain in enumerate(gains):
        state, verdict = state.decide(20.0 + gain, 20.0, float(second))
        if gain >= -0.99 * MARGIN_DB:
            assert verdict is Outcome.PUBLISHED
        if gain < -1.01 * MARGIN_DB:
            assert verdict is not Outcome.PUBLISHED
            row += 1
            assert (verdict is Outcome.STEPPED_BACK) == (row == MAX_WITHHELD)
        if verdict is not Outcome.WITHHELD:
            row = 0
        assert SLOW_FACTOR <= state.rate_factor(float(second)) <= 1.0


def test_a_candidate_that_cannot_be_measured_is_published() -> None:
    for pair in ((None, None), (None, 20.0), (20.0, None)):
        assert PublishState(in_a_row=3).decide(*pair, 0.0) == (PublishState(), Outcome.PUBLISHED)


def test_the_learning_rate_rises_back_after_a_roll_back() -> None:
    state = PublishState().rolled_back(10.0)
    values = [state.rate_factor(10.0 + part * SLOW_S) for part in (0.0, 0.5, 1.0, 5.0)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (SLOW_FACTOR, 1.0)


def test_frames_rendered_much_worse_than_the_rest_are_novel() -> None:
    assert novelty([25.0, 24.0, 26.0], [24.5, 23.5]) == 0.0
    assert novelty([25.0, 25.0], [12.0, 12.0]) == 1.0
    assert 0.0 < novelty([15.0, 25.0], [20.0, 20.5]) < 1.0
    assert novelty([], [12.0]) == novelty([25.0], []) == 0.0


def test_held_back_frames_are_the_newest_and_older_ones_that_differ(pictures: list[Observation]) -> None:
    held_back, turned = HeldBackSet(), []
    still = photograph(open_head(), [pose(open_head())], 32, paint(open_head()))[0]
    for i in range(40):
        turned.append(i % 10 == 3)
        held_back.add(replace(pictures[i // 10 * 2 + 1] if turned[-1] else still, frame_id=i))
        kept = held_back.frames()
    assert len(kept) == RECENT + OLDER
    older = kept[:OLDER]
    features = np.stack([state_features(held.state) for held in older])
    apart = np.linalg.norm(features[:, None] - features, axis=-1)[~np.eye(OLDER, dtype=bool)]
    assert apart.min() > 0.05, "the older frames differ, though most frames were the same"
    held_back.drop_older()
    assert [held.state for held in held_back.frames()] == [held.state for held in kept[OLDER:]]


def test_on_a_slow_machine_fewer_frames_are_measured(pictures: list[Observation]) -> None:
    held = [HeldBackFrame.of(picture, 32) for picture in pictures[:8]]
    assert select_frames(held, 8) == select_frames(held, 99) == held
    assert select_frames(held, 1) == held[7:]
    assert select_frames(held, 2) == [held[3], held[7]]
    assert select_frames(held, 5) == [held[2], held[3], *held[5:]]
    assert select_frames(held[:3], 2) == held[1:3]
    assert select_frames(held[:5], 4) == [held[0], *held[2:5]]
    assert select_frames([], 4) == []

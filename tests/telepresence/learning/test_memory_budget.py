"""Memory budget of the process: the rule for the budget of replay, and its application to a real replay."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from insta_runtime.backends import choose_backend, make_trainer
from insta_runtime.learn.replay_policy import RECENT
from insta_runtime.types import Observation
from telepresence.learning.memory_budget import ReplayLimiter, replay_budget
from telepresence.runtime.telemetry import Telemetry
from tests.support.small_person import SMALL, camera, open_head, performance, small_model

MB = 1_000_000
LIMIT, CEILING = 1000 * MB, 600 * MB


def test_far_below_the_limit_replay_has_its_whole_budget() -> None:
    assert replay_budget(LIMIT, 300 * MB, 0, CEILING, CEILING) == CEILING
    assert replay_budget(LIMIT, 500 * MB, 100 * MB, 50 * MB, CEILING) == 540 * MB


def test_replay_stops_growing_near_the_limit_and_shrinks_above_it() -> None:
    assert replay_budget(LIMIT, 900 * MB, 300 * MB, CEILING, CEILING) == 340 * MB
    assert replay_budget(LIMIT, 1040 * MB, 300 * MB, 340 * MB, CEILING) == 200 * MB
    assert replay_budget(LIMIT, 3000 * MB, 300 * MB, 340 * MB, CEILING) == 0


def test_between_the_two_marks_the_budget_does_not_grow() -> None:
    assert replay_budget(LIMIT, 900 * MB, 300 * MB, 200 * MB, CEILING) == 200 * MB
    assert replay_budget(LIMIT, 800 * MB, 300 * MB, 200 * MB, CEILING) == 440 * MB


@pytest.mark.parametrize("true_share", [0.5, 1.0, 1.5])
def test_a_long_call_settles_although_the_size_of_a_frame_is_only_estimated(true_share: float) -> None:
    """Two hours of a call that adds five frames of 5 MB a second, while something else grows by 40 MB an hour."""
    frame, held, budget, evictions, largest = 5 * MB, 0, CEILING, 0, 0
    for second in range(7200):
        others = 500 * MB + second * 40 * MB // 3600
        held = min(held + 5 * frame, max(held, budget // frame * frame))
        resident = others + round(true_share * held)
        budget = replay_budget(LIMIT, resident, held, budget, CEILING)
        if held > budget:
            evictions += (held - budget) // frame
            held = budget // frame * frame
        largest = max(largest, resident)
    assert largest <= LIMIT
    assert held >= 200 * MB, "not much less than fits"
    assert evictions < 200


def offered(trainer: Any, first: int, count: int, side: int) -> None:
    head = open_head()
    for i, state in enumerate(performance(head, first + count)[first:], first):
        rgb = torch.full((side, side, 3), i % 256, dtype=torch.uint8).numpy()
        alpha = torch.zeros((side, side), dtype=torch.uint8)
        alpha[side // 4 : -side // 4, side // 4 : -side // 4] = 255
        trainer.add(Observation(i, rgb, alpha.numpy(), camera(side), state))
        trainer.take_in()


def test_resident_memory_stays_within_the_budget_while_frames_keep_coming() -> None:
    side = 768
    model = small_model(config=replace(SMALL, learn=replace(SMALL.learn, size=side, replay_mb=4096)))
    trainer = make_trainer(model, choose_backend("host", model))
    offered(trainer, 0, 1, side)
    trainer.step()
    bare = psutil.Process().memory_info().rss
    limit_mb = round(1.1 * bare / MB) + 160
    telemetry = Telemetry(limit_mb)
    limiter = ReplayLimiter(limit_mb, telemetry)
    learner: Any = SimpleNamespace(trainer=trainer)
    unlimited = 0
    for second in range(14):
        offered(trainer, 1 + 8 * second, 8, side)
        unlimited += 8 * side * side * 4
        trainer.step()
        telemetry.measure_memory("cpu", float(second))
        limiter.update(learner)
    assert bare + unlimited > 1.1 * limit_mb * MB, "all frames together would not fit"
    assert psutil.Process().memory_info().rss < 1.1 * limit_mb * MB
    assert RECENT <= len(trainer.replay) < 113
    assert trainer.replay.frame_ids[-RECENT:] == list(range(113 - RECENT, 113))
    assert trainer.step() is not None
    assert telemetry.memory["budget_mb"] == limit_mb


def test_without_a_budget_nothing_is_limited() -> None:
    model = small_model()
    trainer = make_trainer(model, choose_backend("torch", model))
    telemetry = Telemetry()
    telemetry.measure_memory("cpu", 0.0)
    before = trainer.replay.policy.budget
    ReplayLimiter(0, telemetry).update(SimpleNamespace(trainer=trainer))  # type: ignore[arg-type]
    assert trainer.replay.policy.budget == before
    assert telemetry.memory["budget_mb"] is None

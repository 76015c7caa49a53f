"""Memory budget of the process: the rule for the budget of replay, and its application to a real replay."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from insta_runtime.backends import choose_backend, make_trainer
from insta_runtime.learn.replay_policy import RECENT
from insta_runtime.types import Observation
from telepresence.learning.memory_budget import ReplayLimiter, replay_budget
from telepresence.runtime.hardware import resident_bytes
from telepresence.runtime.telemetry import Telemetry
from tests.support.small_person import SMALL, camera, open_head, performance, small_model

MB = 1_000_000
LIMIT, CEILING = 1000 * MB, 600 * MB  # of which 900 MB may be in use


def test_far_below_the_limit_replay_has_its_whole_budget() -> None:
    assert replay_budget(LIMIT, 300 * MB, 0, CEILING, CEILING) == CEILING
    assert replay_budget(LIMIT, 500 * MB, 100 * MB, 50 * MB, CEILING) == 500 * MB


def test_replay_stops_growing_near_the_limit_and_shrinks_above_it() -> None:
    assert replay_budget(LIMIT, 900 * MB, 300 * MB, CEILING, CEILING) == 300 * MB
    assert replay_budget(LIMIT, 1000 * MB, 300 * MB, 340 * MB, CEILING) == 200 * MB
    assert replay_budget(LIMIT, 3000 * MB, 300 * MB, 340 * MB, CEILING) == 0


def test_between_the_two_marks_the_budget_does_not_grow() -> None:
    assert replay_budget(LIMIT, 900 * MB, 300 * MB, 200 * MB, CEILING) == 200 * MB
    assert replay_budget(LIMIT, 800 * MB, 300 * MB, 200 * MB, CEILING) == 400 * MB


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


def fill_within_budget(side: int, spare_mb: int, seconds: int) -> dict[str, Any]:
    """A process that gets eight frames a second and may grow by ``spare_mb``: its memory and its replay at the end."""
    model = small_model(config=replace(SMALL, learn=replace(SMALL.learn, size=side, replay_mb=4096)))
    trainer = make_trainer(model, choose_backend("host", model))
    offered(trainer, 0, 1, side)
    trainer.step()
    limit_mb = resident_bytes() // MB + spare_mb
    telemetry = Telemetry(limit_mb)
    limiter = ReplayLimiter(limit_mb)
    learner: Any = SimpleNamespace(trainer=trainer)
    largest = 0
    for second in range(seconds):
        offered(trainer, 1 + 8 * second, 8, side)
        trainer.step()
        telemetry.measure_memory("cpu", float(second))
        limiter.update(learner, float(second))
        largest = max(largest, resident_bytes())
    return {
        "limit": limit_mb * MB,
        "largest": largest,
        "budget_mb": telemetry.memory["budget_mb"],
        "frames": trainer.replay.frame_ids,
        "learns": trainer.step() is not None,
    }


def test_resident_memory_stays_within_the_budget_while_frames_keep_coming() -> None:
    side, spare_mb, seconds = 512, 300, 40
    offered_bytes = 8 * seconds * side * side * 4
    assert offered_bytes > spare_mb * MB, "the images of all frames together would not fit"
    with ProcessPoolExecutor(1, get_context("spawn")) as process:  # without the memory of other tests
        end = process.submit(fill_within_budget, side, spare_mb, seconds).result()
    assert end["largest"] <= end["limit"]
    assert end["budget_mb"] * MB == end["limit"]
    assert end["learns"]
    count = 8 * seconds + 1
    assert RECENT <= len(end["frames"]) < count
    assert end["frames"][-RECENT:] == list(range(count - RECENT, count))


def test_without_a_budget_nothing_is_limited() -> None:
    model = small_model()
    trainer = make_trainer(model, choose_backend("torch", model))
    telemetry = Telemetry()
    telemetry.measure_memory("cpu", 0.0)
    before = trainer.replay.policy.budget
    ReplayLimiter(0).update(SimpleNamespace(trainer=trainer), 0.0)  # type: ignore[arg-type]
    assert trainer.replay.policy.budget == before
    assert telemetry.memory["budget_mb"] is None

"""Learning budget: when training rests and when it resumes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from telepresence.learning.budget import (
    NOVELTY_TIMEOUT_S,
    PLATEAU_DB,
    PLATEAU_S,
    BudgetInputs,
    LearningBudget,
    LearningMode,
)

TALKING = BudgetInputs(has_avatar=True, last_novel_at=0.0, likeness_db=20.0)


def until(budget: LearningBudget, inputs: BudgetInputs, begin: float, end: float) -> LearningBudget:
    for tenth in range(int(10 * begin), int(10 * end)):
        budget = budget.after(inputs, tenth / 10)
    return budget


def test_training_waits_for_a_subject_learns_and_rests_when_nothing_is_new() -> None:
    budget = LearningBudget().after(BudgetInputs(), 0.0)
    assert budget.mode is LearningMode.WAITING
    budget = budget.after(TALKING, 1.0)
    assert budget.mode is LearningMode.LEARNING
    budget = until(budget, TALKING, 1.0, 1.0 + min(NOVELTY_TIMEOUT_S, PLATEAU_S))
    assert budget.mode is LearningMode.LEARNING
    budget = until(budget, TALKING, 20.0, 25.0 + max(NOVELTY_TIMEOUT_S, PLATEAU_S))
    assert (budget.mode, budget.reason) == (LearningMode.RESTING, "there is nothing new to learn")
    assert until(budget, TALKING, 50.0, 500.0) == budget
    woken = budget.after(replace(TALKING, last_novel_at=500.0), 500.0)
    assert woken.mode is LearningMode.LEARNING
    # In another light the likeness may be lower than before; training continues nevertheless.
    darker = replace(TALKING, last_novel_at=500.0, likeness_db=15.0)
    assert until(woken, darker, 500.0, 499.0 + NOVELTY_TIMEOUT_S).mode is LearningMode.LEARNING


def test_training_continues_while_the_likeness_rises() -> None:
    budget = LearningBudget().after(TALKING, 0.0)
    for second in range(300):
        budget = budget.after(replace(TALKING, likeness_db=20.0 + PLATEAU_DB * second / 10), float(second))
        assert budget.mode is LearningMode.LEARNING
    assert until(budget, replace(TALKING, likeness_db=22.0), 300.0, 330.0).mode is LearningMode.RESTING


def test_training_rests_without_a_face_and_resumes_with_it() -> None:
    budget = LearningBudget().after(TALKING, 0.0)
    budget = budget.after(replace(TALKING, absent=True), 1.0)
    assert (budget.mode, budget.reason, budget.since) == (LearningMode.RESTING, "no face is in view", 1.0)
    assert budget.after(replace(TALKING, last_novel_at=9.0), 9.0).mode is LearningMode.LEARNING


def test_frozen_and_failed_are_different_modes() -> None:
    assert LearningBudget().after(replace(TALKING, frozen=True), 0.0).mode is LearningMode.FROZEN
    failed = LearningBudget().after(replace(TALKING, failure="ValueError: no"), 0.0)
    assert (failed.mode, failed.reason) == (LearningMode.FAILED, "ValueError: no")
    assert failed.after(TALKING, 1.0).mode is LearningMode.LEARNING


moments = st.builds(
    BudgetInputs,
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), st.floats(0, 100)),
    st.one_of(st.none(), st.floats(5, 40)),
    st.booleans(),
    st.one_of(st.none(), st.just("broken")),
)


@given(st.lists(st.tuples(st.floats(0.0, 30.0), moments), max_size=30))
def test_every_history_keeps_the_invariants(history: list[tuple[float, BudgetInputs]]) -> None:
    budget, now = LearningBudget(), 0.0
    for pause, inputs in history:
        now += pause
        before, budget = budget, budget.after(inputs, now)
        assert budget.since == (before.since if budget.mode is before.mode else now)
        assert (budget.mode is LearningMode.FAILED) == (inputs.failure is not None)
        if inputs.has_avatar and not inputs.absent and not inputs.frozen and inputs.failure is None:
            # Novel frames are learned, and so is an avatar that was never measured.
            fresh = inputs.last_novel_at is not None and 0.0 <= now - inputs.last_novel_at <= NOVELTY_TIMEOUT_S
            assert budget.mode is LearningMode.LEARNING or not (fresh or inputs.likeness_db is None)

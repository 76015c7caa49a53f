"""When learning rests, and when it wakes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from telepresence.learning.budget import FLAT_DB, FLAT_S, NEWS_S, LearningBudget, LearningMode, BudgetInputs

TALKING = BudgetInputs(known=True, news=0.0, likeness_db=20.0)


def until(budget: LearningBudget, wants: BudgetInputs, begin: float, end: float) -> LearningBudget:
    for tenth in range(int(10 * begin), int(10 * end)):
        budget = budget.after(wants, tenth / 10)
    return budget


def test_it_waits_for_somebody_learns_and_rests_when_all_is_known() -> None:
    budget = LearningBudget().after(BudgetInputs(), 0.0)
    assert budget.mode is LearningMode.WAITING
    budget = budget.after(TALKING, 1.0)
    assert budget.mode is LearningMode.LEARNING
    budget = until(budget, TALKING, 1.0, 1.0 + min(NEWS_S, FLAT_S))
    assert budget.mode is LearningMode.LEARNING
    budget = until(budget, TALKING, 20.0, 25.0 + max(NEWS_S, FLAT_S))
    assert (budget.mode, budget.reason) == (LearningMode.RESTING, "nothing new is to be learned")
    assert until(budget, TALKING, 50.0, 500.0) == budget
    woken = budget.after(replace(TALKING, news=500.0), 500.0)
    assert woken.mode is LearningMode.LEARNING
    # The likeness may be lower than ever before, in another light: it is given its time all the same.
    darker = replace(TALKING, news=500.0, likeness_db=15.0)
    assert until(woken, darker, 500.0, 499.0 + NEWS_S).mode is LearningMode.LEARNING


def test_while_the_likeness_rises_it_learns_from_what_it_has() -> None:
    budget = LearningBudget().after(TALKING, 0.0)
    for second in range(300):
        budget = budget.after(replace(TALKING, likeness_db=20.0 + FLAT_DB * second / 10), float(second))
        assert budget.mode is LearningMode.LEARNING
    assert until(budget, replace(TALKING, likeness_db=22.0), 300.0, 330.0).mode is LearningMode.RESTING


def test_who_left_is_not_learned_and_who_comes_back_is_at_once() -> None:
    budget = LearningBudget().after(TALKING, 0.0)
    budget = budget.after(replace(TALKING, away=True), 1.0)
    assert (budget.mode, budget.reason, budget.since) == (LearningMode.RESTING, "nobody is there", 1.0)
    assert budget.after(replace(TALKING, news=9.0), 9.0).mode is LearningMode.LEARNING


def test_freezing_and_failing_are_told_apart() -> None:
    assert LearningBudget().after(replace(TALKING, frozen=True), 0.0).mode is LearningMode.FROZEN
    failed = LearningBudget().after(replace(TALKING, failure="ValueError: no"), 0.0)
    assert (failed.mode, failed.why) == (LearningMode.FAILED, "ValueError: no")
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
    for pause, wants in history:
        now += pause
        before, budget = budget, budget.after(wants, now)
        assert budget.since == (before.since if budget.mode is before.mode else now)
        assert (budget.mode is LearningMode.FAILED) == (wants.failure is not None)
        if wants.known and not wants.away and not wants.frozen and wants.failure is None:
            # What is new is learned; and who was never measured is.
            fresh = wants.news is not None and 0.0 <= now - wants.news <= NEWS_S
            assert budget.mode is LearningMode.LEARNING or not (fresh or wants.likeness_db is None)

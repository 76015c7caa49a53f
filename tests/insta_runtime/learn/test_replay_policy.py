"""Replay policy: which entries are kept, evicted and drawn."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.field.expression_code import CODE_WIDTH, ExpressionCode
from insta_runtime.learn.replay_policy import (
    ENOUGH,
    EPOCH_FADE,
    LONE,
    MAX_EXPRESSIONS,
    MIN_CODE_DISTANCE,
    RECENT,
    ExpressionClusters,
    ReplayPolicy,
)
from insta_runtime.types import HeadState
from tests.support.small_person import open_head, pose

HEAD = open_head()
CODE = ExpressionCode(HEAD)
NEUTRAL, SMILE, SIDE = pose(HEAD), pose(HEAD, smile=1.0), pose(HEAD, yaw=0.6)


def make_policy(room: int, seed: int = 0) -> ReplayPolicy[int]:
    """Policy with space for ``room`` entries of ten bytes."""
    return ReplayPolicy(CODE, 10 * room, seed)


def insert(policy: ReplayPolicy[int], state: HeadState, number: int, *, recalled: bool = False) -> list[int]:
    """Insert an entry; returns the items that were evicted for it."""
    policy.pop_incoming()
    entry = policy.make_entry(state, 10, recalled=recalled)
    evicted = policy.evict_for(entry)
    policy.insert(entry, number)
    policy.update_pools()
    return evicted


def test_rare_poses_and_expressions_stay_however_long_a_call_lasts() -> None:
    policy = make_policy(60)
    for number, state in enumerate([SMILE, SIDE, NEUTRAL, SMILE]):
        insert(policy, state, number)
    evicted = [gone for number in range(4, 10_000) for gone in insert(policy, NEUTRAL, number)]  # 33 minutes
    assert {0, 1, 3} <= set(policy.items), "two smiles and a turned head"
    assert 2 in evicted
    assert policy.items[-RECENT:] == list(range(10_000 - RECENT, 10_000))
    assert len(policy.items) == 60
    assert policy.items == sorted(policy.items)
    assert sorted(evicted + policy.items) == list(range(10_000)), "each is evicted once"


def test_cells_share_the_budget() -> None:
    policy, rng = make_policy(80), np.random.default_rng(0)
    states = [NEUTRAL, SMILE, SIDE, pose(HEAD, jaw=1.0)]
    for number in range(1500):
        insert(policy, states[int(rng.choice(4, p=[0.9, 0.06, 0.03, 0.01]))], number)
    history = Counter(entry.cell for entry in policy.entries[:-RECENT])
    assert len(history) == 4
    assert min(history.values()) >= 12, history
    assert policy.composition.cells == 4
    assert policy.composition.largest_cell <= 16 + RECENT


def test_the_budget_is_in_bytes_and_the_newest_are_kept_beyond_it() -> None:
    policy = make_policy(30)
    for number in range(200):
        insert(policy, (NEUTRAL, SMILE)[number % 2], number)
        assert policy.composition.bytes <= 300
    assert policy.composition.bytes == 300
    small = make_policy(1)
    for number in range(40):
        insert(small, NEUTRAL, number)
    assert small.items == list(range(40 - RECENT, 40))


def test_the_same_seed_keeps_and_draws_the_same() -> None:
    runs = []
    for seed in (1, 1, 2):
        policy = make_policy(30, seed)
        for number in range(100):
            insert(policy, (NEUTRAL, SMILE, SIDE)[number % 3], number)
        policy.start_epoch()
        for number in range(100, 150):
            insert(policy, NEUTRAL, number)
        runs.append((policy.items, policy.newest, policy.pool))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_everything_is_in_the_pool_within_the_first_epoch() -> None:
    policy = make_policy(100)
    for number in range(50):
        insert(policy, (NEUTRAL, SMILE)[number % 2], number)
    assert policy.pool == policy.items == list(range(50))
    assert policy.newest == list(range(50 - RECENT, 50))
    composition = policy.composition
    assert (composition.pictures, composition.recent, composition.history) == (50, RECENT, 50 - RECENT)
    assert Counter(entry.epoch for entry in policy.entries) == {0: 50}


def drawn_share(policy: ReplayPolicy[int], numbers: range, times: int = 60) -> float:
    """Share of the kept ones among the items ``numbers`` that are in the pool, on average."""
    found = 0
    for _ in range(times):
        policy.update_pools()
        found += len(set(policy.pool) & set(numbers))
    return found / (times * max(1, len(set(policy.items) & set(numbers))))


def test_in_a_new_epoch_earlier_entries_fade_out_except_in_cells_without_new_ones() -> None:
    policy = make_policy(1000)
    for number in range(100):
        insert(policy, NEUTRAL, number)
    for number in range(100, 120):
        insert(policy, SMILE, number)
    policy.start_epoch()
    insert(policy, NEUTRAL, 120)
    assert policy.newest == [120], "the newest entries are of the new epoch at once"
    assert drawn_share(policy, range(100)) > 0.95
    for number in range(121, 120 + EPOCH_FADE // 2):
        insert(policy, NEUTRAL, number)
    assert drawn_share(policy, range(100)) == pytest.approx(0.5, abs=0.1)
    for number in range(120 + EPOCH_FADE // 2, 120 + EPOCH_FADE):
        insert(policy, NEUTRAL, number)
    assert drawn_share(policy, range(100)) == 0.0
    assert drawn_share(policy, range(100, 120)) == pytest.approx(LONE, abs=0.08), "the smile has no new entries"
    assert drawn_share(policy, range(120, 120 + EPOCH_FADE)) == 1.0
    assert Counter(entry.epoch for entry in policy.entries) == {0: 120, 1: EPOCH_FADE}
    for number in range(300, 300 + ENOUGH):
        insert(policy, SMILE, number)
    assert drawn_share(policy, range(100, 120)) == 0.0, "now the cell has new entries"


def test_earlier_entries_of_a_cell_with_new_ones_are_evicted_first() -> None:
    policy = make_policy(60)
    for number in range(40):
        insert(policy, (NEUTRAL, SMILE)[number % 2], number)
    policy.start_epoch(weight=0.5)
    evicted = [gone for number in range(40, 90) for gone in insert(policy, NEUTRAL, number)]
    assert {number % 2 for number in evicted[:20]} == {0}, "earlier neutral entries"
    assert set(range(1, 40, 2)) <= set(policy.items), "all smiles"
    assert drawn_share(policy, range(1, 40, 2)) == pytest.approx(0.5, abs=0.1)


def test_two_new_epochs_fade_twice_and_discard_queued_observations() -> None:
    from insta_runtime.types import Observation

    policy = make_policy(1000)
    insert(policy, NEUTRAL, 0)
    nothing = np.zeros((2, 2), np.uint8)
    waiting = Observation(7, np.zeros((2, 2, 3), np.uint8), nothing, None, NEUTRAL)  # type: ignore[arg-type]
    policy.offer(waiting)
    policy.start_epoch(0.5)
    policy.offer(waiting)
    policy.start_epoch(0.5)
    policy.offer(waiting)
    assert policy.pop_incoming() == [waiting]
    for number in range(1, 1 + EPOCH_FADE):
        insert(policy, NEUTRAL, number)
    assert drawn_share(policy, range(1), times=400) == pytest.approx(0.25, abs=0.07)


def test_recalled_entries_are_evicted_as_real_ones_of_their_cell_arrive() -> None:
    policy = make_policy(40)
    insert(policy, NEUTRAL, 0)
    for number, state in enumerate([SMILE, SMILE, SIDE, NEUTRAL], 100):
        assert policy.lacks(state, 10)
        assert insert(policy, state, number, recalled=True) == []
    assert policy.newest == [0], "recalled entries are not among the newest"
    assert set(policy.pool) == {0, 100, 101, 102, 103}
    assert policy.composition.recalled == 4
    assert [insert(policy, SMILE, number) for number in range(1, ENOUGH + 1)] == [[]] * ENOUGH
    assert not policy.lacks(SMILE, 10)
    gone = [insert(policy, SMILE, number) for number in range(ENOUGH + 1, ENOUGH + 4)]
    assert sorted(one for ones in gone for one in ones) == [100, 101]
    assert {102, 103} <= set(policy.items)


def test_recalled_entries_take_no_space_from_real_ones() -> None:
    policy = make_policy(40)
    insert(policy, NEUTRAL, 0)
    for number in range(1, 60):
        if policy.lacks(SMILE, 10):
            insert(policy, SMILE, number, recalled=True)
    assert policy.composition.recalled == 10, "a quarter of the budget"
    for number in range(100, 130):
        insert(policy, SIDE, number)
    assert not policy.lacks(pose(HEAD, jaw=1.0), 10), "full"


def test_recalled_entries_belong_to_an_earlier_epoch() -> None:
    policy = make_policy(200)
    policy.start_epoch()
    insert(policy, SMILE, 0)
    insert(policy, NEUTRAL, 1, recalled=True)
    for number in range(2, 2 + EPOCH_FADE):
        insert(policy, SIDE, number)
    assert drawn_share(policy, range(1, 2), times=400) == pytest.approx(LONE, abs=0.08)


def test_states_that_are_not_finite_have_a_cell_too() -> None:
    policy = make_policy(30)
    for number in range(60):
        broken = replace(NEUTRAL, expression=NEUTRAL.expression * math.nan, rotation=NEUTRAL.rotation * math.nan)
        insert(policy, broken if number % 2 else NEUTRAL, number)
    assert len(policy.items) == 30


def test_cluster_centres_are_as_far_apart_as_the_codes() -> None:
    clusters, rng = ExpressionClusters(), np.random.default_rng(0)
    codes = rng.uniform(-1.0, 1.0, (400, CODE_WIDTH)).astype(np.float32)
    extremes = 6.0 * np.eye(CODE_WIDTH, dtype=np.float32)[: MAX_EXPRESSIONS // 2]
    for code in np.concatenate([codes[:200], extremes, codes[200:]]):
        clusters.add(code)
    leaders = clusters.leaders
    assert len(leaders) == MAX_EXPRESSIONS
    apart = np.linalg.norm(leaders[:, None] - leaders[None], axis=-1)
    assert apart[~np.eye(len(leaders), dtype=bool)].min() > MIN_CODE_DISTANCE
    assert len(set(clusters.nearest(extremes).tolist())) == len(extremes), "rare codes have clusters of their own"
    assert not clusters.add(leaders[3]), "a known code changes nothing"

"""What a replay keeps and draws, whoever stores the pictures."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from insta_runtime.field.expression_code import CODE_WIDTH, ExpressionCode
from insta_runtime.learn.replay_policy import (
    ENOUGH,
    EXPRESSIONS,
    FADE,
    LONE,
    NEAR,
    RECENT,
    ExpressionClusters,
    ReplayPolicy,
)
from insta_runtime.types import HeadState
from tests.support.small_person import open_head, pose

HEAD = open_head()
CODE = ExpressionCode(HEAD)
NEUTRAL, SMILE, SIDE = pose(HEAD), pose(HEAD, smile=1.0), pose(HEAD, yaw=0.6)


def keeping(room: int, seed: int = 0) -> ReplayPolicy[int]:
    """One with room for so many pictures of ten bytes."""
    return ReplayPolicy(CODE, 10 * room, seed)


def take(keeping: ReplayPolicy[int], state: HeadState, number: int, *, recalled: bool = False) -> list[int]:
    """Take in a picture; those given up for it."""
    keeping.pop_incoming()
    picture = keeping.make_entry(state, 10, recalled=recalled)
    given_up = keeping.evict_for(picture)
    keeping.insert(picture, number)
    keeping.update_pools()
    return given_up


def test_what_is_rare_stays_however_long_the_rest_goes_on() -> None:
    kept = keeping(60)
    for number, state in enumerate([SMILE, SIDE, NEUTRAL, SMILE]):
        take(kept, state, number)
    given_up = [gone for number in range(4, 10_000) for gone in take(kept, NEUTRAL, number)]  # 33 minutes
    assert {0, 1, 3} <= set(kept.items), "two smiles and a look to the side"
    assert 2 in given_up
    assert kept.items[-RECENT:] == list(range(10_000 - RECENT, 10_000))
    assert len(kept.items) == 60
    assert kept.items == sorted(kept.items)
    assert sorted(given_up + kept.items) == list(range(10_000)), "each is given up once"


def test_cells_share_the_room() -> None:
    kept, rng = keeping(80), np.random.default_rng(0)
    states = [NEUTRAL, SMILE, SIDE, pose(HEAD, jaw=1.0)]
    for number in range(1500):
        take(kept, states[int(rng.choice(4, p=[0.9, 0.06, 0.03, 0.01]))], number)
    history = Counter(picture.cell for picture in kept.pictures[:-RECENT])
    assert len(history) == 4
    assert min(history.values()) >= 12, history
    assert kept.composition.cells == 4
    assert kept.composition.fullest <= 16 + RECENT


def test_the_budget_is_in_bytes_and_the_newest_are_beyond_it() -> None:
    kept = keeping(30)
    for number in range(200):
        take(kept, (NEUTRAL, SMILE)[number % 2], number)
        assert kept.composition.bytes <= 300
    assert kept.composition.bytes == 300
    small = keeping(1)
    for number in range(40):
        take(small, NEUTRAL, number)
    assert small.items == list(range(40 - RECENT, 40))


def test_the_same_seed_keeps_and_deals_the_same() -> None:
    runs = []
    for seed in (1, 1, 2):
        kept = keeping(30, seed)
        for number in range(100):
            take(kept, (NEUTRAL, SMILE, SIDE)[number % 3], number)
        kept.start_epoch()
        for number in range(100, 150):
            take(kept, NEUTRAL, number)
        runs.append((kept.items, kept.newest, kept.deck))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_everything_is_dealt_as_long_as_no_page_is_turned() -> None:
    kept = keeping(100)
    for number in range(50):
        take(kept, (NEUTRAL, SMILE)[number % 2], number)
    assert kept.deck == kept.items == list(range(50))
    assert kept.newest == list(range(50 - RECENT, 50))
    composition = kept.composition
    assert (composition.pictures, composition.recent, composition.history) == (50, RECENT, 50 - RECENT)
    assert composition.epochs == {0: 50}


def dealt(kept: ReplayPolicy[int], numbers: range, times: int = 60) -> float:
    """Part of the pictures ``numbers``, of those that are kept, that are in the deck."""
    found = 0
    for _ in range(times):
        kept.deal()
        found += len(set(kept.deck) & set(numbers))
    return found / (times * max(1, len(set(kept.items) & set(numbers))))


def test_on_a_new_page_old_pictures_fade_but_not_where_nothing_is_new() -> None:
    kept = keeping(1000)
    for number in range(100):
        take(kept, NEUTRAL, number)
    for number in range(100, 120):
        take(kept, SMILE, number)
    kept.start_epoch()
    take(kept, NEUTRAL, 120)
    assert kept.newest == [120], "what is drawn every time is of the new page at once"
    assert dealt(kept, range(100)) > 0.95
    for number in range(121, 120 + FADE // 2):
        take(kept, NEUTRAL, number)
    assert dealt(kept, range(100)) == pytest.approx(0.5, abs=0.1)
    for number in range(120 + FADE // 2, 120 + FADE):
        take(kept, NEUTRAL, number)
    assert dealt(kept, range(100)) == 0.0
    assert dealt(kept, range(100, 120)) == pytest.approx(LONE, abs=0.08), "the smile is not forgotten"
    assert dealt(kept, range(120, 120 + FADE)) == 1.0
    assert kept.composition.epochs == {0: 120, 1: FADE}
    for number in range(300, 300 + ENOUGH):
        take(kept, SMILE, number)
    assert dealt(kept, range(100, 120)) == 0.0, "now there is a new one"


def test_old_pictures_of_a_cell_with_new_ones_are_given_up_first() -> None:
    kept = keeping(60)
    for number in range(40):
        take(kept, (NEUTRAL, SMILE)[number % 2], number)
    kept.start_epoch(weight=0.5)
    given_up = [gone for number in range(40, 90) for gone in take(kept, NEUTRAL, number)]
    assert {number % 2 for number in given_up[:20]} == {0}, "old neutral ones"
    assert set(range(1, 40, 2)) <= set(kept.items), "all smiles"
    assert dealt(kept, range(1, 40, 2)) == pytest.approx(0.5, abs=0.1)


def test_a_page_that_is_turned_twice_fades_twice_and_what_still_waits_is_left_out() -> None:
    from insta_runtime.types import Observation

    kept = keeping(1000)
    take(kept, NEUTRAL, 0)
    nothing = np.zeros((2, 2), np.uint8)
    waiting = Observation(7, np.zeros((2, 2, 3), np.uint8), nothing, None, NEUTRAL)  # type: ignore[arg-type]
    kept.offer(waiting)
    kept.start_epoch(0.5)
    kept.offer(waiting)
    kept.start_epoch(0.5)
    kept.offer(waiting)
    assert kept.arrived() == [waiting]
    for number in range(1, 1 + FADE):
        take(kept, NEUTRAL, number)
    assert dealt(kept, range(1), times=400) == pytest.approx(0.25, abs=0.07)


def test_recalled_pictures_make_room_as_real_ones_of_their_cell_arrive() -> None:
    kept = keeping(40)
    take(kept, NEUTRAL, 0)
    for number, state in enumerate([SMILE, SMILE, SIDE, NEUTRAL], 100):
        assert kept.lacks(state, 10)
        assert take(kept, state, number, recalled=True) == []
    assert kept.newest == [0], "what was recalled is not new"
    assert set(kept.deck) == {0, 100, 101, 102, 103}
    assert kept.composition.recalled == 4
    assert [take(kept, SMILE, number) for number in range(1, ENOUGH + 1)] == [[]] * ENOUGH
    assert not kept.lacks(SMILE, 10)
    gone = [take(kept, SMILE, number) for number in range(ENOUGH + 1, ENOUGH + 4)]
    assert sorted(one for ones in gone for one in ones) == [100, 101]
    assert {102, 103} <= set(kept.items)


def test_recalled_pictures_take_no_room_from_real_ones() -> None:
    kept = keeping(40)
    take(kept, NEUTRAL, 0)
    for number in range(1, 60):
        if kept.lacks(SMILE, 10):
            take(kept, SMILE, number, recalled=True)
    assert kept.composition.recalled == 10, "a quarter of the room"
    for number in range(100, 130):
        take(kept, SIDE, number)
    assert not kept.lacks(pose(HEAD, jaw=1.0), 10), "full"


def test_recalled_pictures_are_of_an_earlier_page() -> None:
    kept = keeping(200)
    kept.start_epoch()
    take(kept, SMILE, 0)
    take(kept, NEUTRAL, 1, recalled=True)
    for number in range(2, 2 + FADE):
        take(kept, SIDE, number)
    assert dealt(kept, range(1, 2), times=400) == pytest.approx(LONE, abs=0.08)


def test_states_that_are_no_numbers_have_a_cell_too() -> None:
    kept = keeping(30)
    for number in range(60):
        broken = replace(NEUTRAL, expression=NEUTRAL.expression * math.nan, rotation=NEUTRAL.rotation * math.nan)
        take(kept, broken if number % 2 else NEUTRAL, number)
    assert len(kept.items) == 30


def test_leaders_are_as_far_apart_as_what_was_seen() -> None:
    expressions, rng = ExpressionClusters(), np.random.default_rng(0)
    codes = rng.uniform(-1.0, 1.0, (400, CODE_WIDTH)).astype(np.float32)
    extremes = 6.0 * np.eye(CODE_WIDTH, dtype=np.float32)[: EXPRESSIONS // 2]
    for code in np.concatenate([codes[:200], extremes, codes[200:]]):
        expressions.see(code)
    leaders = expressions.leaders
    assert len(leaders) == EXPRESSIONS
    apart = np.linalg.norm(leaders[:, None] - leaders[None], axis=-1)
    assert apart[~np.eye(len(leaders), dtype=bool)].min() > NEAR
    assert len(set(expressions.nearest(extremes).tolist())) == len(extremes), "rare ones are told apart"
    assert not expressions.see(leaders[3]), "and what was seen before changes nothing"

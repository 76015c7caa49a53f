"""The sample of states that were learned from, and the range of their codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from insta_runtime.config import ConditioningConfig
from insta_runtime.field.expression_code import CODE_WIDTH, PULLED_FROM, STANDARD_SPREAD, CodeRange, ExpressionCode
from insta_runtime.field.state_reservoir import CAPACITY, StateReservoir
from insta_runtime.types import Float32, HeadState
from tests.support.small_person import flame_head, open_head, performance, pose


def talk(count: int) -> list[HeadState]:
    """A mouth that opens while it smiles, in proportion, lids that blink, and a little noise on everything."""
    rng = np.random.default_rng(0)
    states = []
    for i in range(count):
        open_ = max(0.0, np.sin(0.37 * i))
        state = pose(open_head(), jaw=0.5 * open_, smile=0.4 * open_, blink=float(i % 19 == 0))
        states.append(replace(state, expression=(state.expression + 0.01 * rng.random(52)).astype(np.float32)))
    return states


def learned(count: int = 200, config: ConditioningConfig | None = None) -> ExpressionCode:
    code = ExpressionCode(open_head(), config)
    for state in talk(count):
        code.observe(state)
    return code


def test_a_state_is_restored_from_its_row() -> None:
    reservoir = StateReservoir(100)
    rng = np.random.default_rng(1)
    state = HeadState(**{n: rng.random(a.shape).astype(np.float32) for n, a in HeadState.neutral(100).arrays().items()})
    assert reservoir.observe(state) == 0
    for name, value in reservoir.state(0).arrays().items():
        np.testing.assert_array_equal(value, getattr(state, name), err_msg=name)
    np.testing.assert_array_equal(reservoir.column("eyelids")[0], state.eyelids)


def test_the_sample_is_uniform_bounded_and_reproducible() -> None:
    def sample() -> Float32:
        reservoir = StateReservoir(1)
        for i in range(4 * CAPACITY):
            reservoir.observe(HeadState(np.array([i], np.float32)))
        assert len(reservoir) == CAPACITY
        assert reservoir.count == 4 * CAPACITY
        return reservoir.column("expression")[:, 0].copy()

    kept = sample()
    assert len(set(kept.tolist())) == CAPACITY
    assert np.histogram(kept, 4)[0].min() > CAPACITY / 4 - 40
    np.testing.assert_array_equal(kept, sample())


def test_numbers_that_are_not_finite_are_stored_as_zero() -> None:
    reservoir = StateReservoir(2)
    reservoir.observe(HeadState(np.array([np.nan, 1e30], np.float32)))
    assert not reservoir.column("expression").any()


def test_codes_are_standardised_by_the_subjects_own_range() -> None:
    code = learned()
    codes = np.array([code(state) for state in talk(200)])
    lively = [0, 6, 16, 17]  # jaw, smile, lids
    np.testing.assert_allclose(codes[:, lively].mean(axis=0), 0.0, atol=0.03)
    np.testing.assert_allclose(codes[:, lively].std(axis=0), STANDARD_SPREAD, rtol=0.1)
    assert codes[:, 1].std() < 0.5 * STANDARD_SPREAD, "noise is not made as large as an expression"


def test_codes_are_unchanged_before_any_frame() -> None:
    code = ExpressionCode(open_head())
    state = pose(open_head(), jaw=1.0, smile=0.7, blink=1.0)
    np.testing.assert_allclose(code(state), code.raw(state), atol=1e-6)


def test_a_code_seen_in_training_is_unchanged() -> None:
    code = learned()
    for state in talk(200):
        np.testing.assert_allclose(code(state), code.learned(code.raw(state)), atol=1e-5)


def test_an_unseen_code_is_projected_into_the_range() -> None:
    code = learned()
    seen = np.array([code.raw(state) for state in talk(200)])
    far = pose(open_head(), jaw=1.0)
    pulled = code.range.project(code.raw(far))
    assert pulled[0] < 1.4 * seen[:, 0].max(), "the jaw never opened so far in training"
    # An open mouth without a smile is unseen, too: it is projected towards the smile.
    opened = code.raw(pose(open_head(), jaw=0.4))
    assert (code.range.project(opened) - opened)[6:8].sum() > 0.03
    # The code as a whole is nearer to those seen, in units of the range.
    distance = [np.linalg.norm((c - seen) / code.range.spread, axis=1).min() for c in (code.raw(far), pulled)]
    assert distance[1] < 0.7 * distance[0]


def test_projection_never_makes_small_steps_large() -> None:
    code = learned()
    rng = np.random.default_rng(3)
    for _ in range(50):
        a = rng.normal(0.3, 0.6, CODE_WIDTH).astype(np.float32)
        b = a + rng.normal(0.0, 0.02, CODE_WIDTH).astype(np.float32)
        moved = np.linalg.norm((code.range.project(a) - code.range.project(b)) / code.range.spread)
        assert moved <= np.linalg.norm((a - b) / code.range.spread) * 1.001


def test_with_few_frames_codes_are_not_projected_and_hardly_scaled() -> None:
    code = ExpressionCode(open_head())
    state = pose(open_head(), jaw=0.2)
    code.observe(state)
    far = code.raw(pose(open_head(), jaw=1.0, blink=1.0))
    np.testing.assert_array_equal(code.range.project(far), far)
    np.testing.assert_allclose(code.learned(far), far, atol=0.1)
    assert PULLED_FROM > 1


def test_the_range_settles_in_a_long_call() -> None:
    code = learned(CAPACITY)
    before = code.range
    for state in talk(60):
        assert not code.observe(replace(state, expression=np.ones(52, np.float32)))
    np.testing.assert_array_equal(code.range.mean, before.mean)
    np.testing.assert_array_equal(code.range.spread, before.spread)
    assert (code.range.high > before.high).any(), "new expressions extend the range"


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("pull_in", [True, False])
def test_standardisation_and_projection_can_be_turned_off(standardise: bool, pull_in: bool) -> None:
    code = learned(200, ConditioningConfig(standardise=standardise, pull_in=pull_in))
    state = pose(open_head(), jaw=1.0)
    expected = code.raw(state)
    if pull_in:
        expected = code.range.project(expected)
    if standardise:
        expected = code.range.standardise(expected)
    np.testing.assert_array_equal(code(state), expected)


def test_codes_of_flame_have_a_range_too() -> None:
    code = ExpressionCode(flame_head())
    for state in performance(flame_head(), 100):
        code.observe(state)
    far = replace(HeadState.neutral(100), expression=np.full(100, 6.0, np.float32))
    assert np.abs(code(far)).max() < np.abs(code.learned(code.raw(far))).max()


def test_an_unbounded_range_is_the_identity() -> None:
    codes = torch.rand(5, CODE_WIDTH).numpy() * 3.0
    unknown = CodeRange.unbounded()
    np.testing.assert_array_equal(unknown.project(codes), codes)
    np.testing.assert_allclose(unknown.standardise(codes), codes, rtol=1e-6)

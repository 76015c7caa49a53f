"""Smoothstep of numbers, arrays and tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insta_runtime.smoothstep import smoothstep

X = [-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0]
EXPECTED = [0.0, 0.0, 0.15625, 0.5, 0.84375, 1.0, 1.0]


def test_numbers_arrays_and_tensors_give_the_same_values() -> None:
    assert [smoothstep(x) for x in X] == EXPECTED
    assert smoothstep(np.array(X, dtype=np.float32)).tolist() == EXPECTED
    assert smoothstep(torch.tensor(X)).tolist() == EXPECTED


@pytest.mark.parametrize(("low", "high"), [(2.0, 6.0), (6.0, 2.0)])
def test_it_rises_from_low_to_high_or_falls_if_low_is_the_larger(low: float, high: float) -> None:
    assert smoothstep(low, low, high) == 0.0
    assert smoothstep(high, low, high) == 1.0
    assert smoothstep(0.5 * (low + high), low, high) == 0.5


def test_dtypes_stay() -> None:
    assert smoothstep(np.float32([0.3])).dtype == np.float32
    assert smoothstep(torch.tensor([0.3], dtype=torch.float64)).dtype == torch.float64

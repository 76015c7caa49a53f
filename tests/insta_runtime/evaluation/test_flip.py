"""FLIP: values known in closed form, and values of the authors' program."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insta_runtime.evaluation.flip import flip_map

SIDE = 96


def waves(seed: int) -> torch.Tensor:
    """A smooth colourful picture."""
    random, x = np.random.default_rng(seed), np.linspace(0, 6, SIDE)

    def channel() -> np.ndarray:
        a, b, c = random.uniform(0.5, 3), random.uniform(0, 6), random.uniform(0.5, 3)
        return 0.5 + 0.5 * np.sin(a * x[:, None] + b + c * x[None])

    return torch.from_numpy(np.stack([channel() for _ in range(3)], -1).astype(np.float32))


def flat(*colour: float) -> torch.Tensor:
    return torch.tensor(colour).expand(SIDE, SIDE, 3)


def noisy(picture: torch.Tensor) -> torch.Tensor:
    noise = np.random.default_rng(0).normal(0, 0.05, picture.shape).astype(np.float32)
    return (picture + torch.from_numpy(noise)).clamp(0.0, 1.0)


def with_a_hole(picture: torch.Tensor) -> torch.Tensor:
    holed = picture.clone()
    holed[40:50, 40:50] = 0.0
    return holed


def test_equal_images_have_no_difference() -> None:
    assert flip_map(waves(0), waves(0)).abs().max() == 0.0


def test_it_is_symmetric_and_at_most_one() -> None:
    for other in (waves(1), noisy(waves(0)), 1.0 - waves(0), torch.rand(SIDE, SIDE, 3)):
        there, back = flip_map(waves(0), other), flip_map(other, waves(0))
        torch.testing.assert_close(there, back)
        assert there.shape == (SIDE, SIDE)
        assert there.min() >= 0.0
        assert there.max() <= 1.0


def test_green_and_blue_have_the_largest_difference() -> None:
    assert flip_map(flat(0, 1, 0), flat(0, 0, 1)).min() == pytest.approx(1.0, abs=1e-5)


# The mean that the authors' program (flip-evaluator 1.7, pixels per degree 67.02) finds for the same pictures.
PUBLISHED = {
    "noise": (waves(1), noisy(waves(1)), 0.115086),
    "another picture": (waves(1), waves(2), 0.917712),
    "three pixels aside": (waves(1), waves(1).roll(3, 1), 0.504034),
    "a hole": (waves(1), with_a_hole(waves(1)), 0.020223),
    "black and white": (flat(0, 0, 0), flat(1, 1, 1), 0.967351),
    "a little lighter": (waves(1), (waves(1) + 0.01).clamp(max=1.0), 0.078669),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_agrees_with_the_authors_program(name: str) -> None:
    truth, picture, expected = PUBLISHED[name]
    assert float(flip_map(picture, truth, 67.0206).mean()) == pytest.approx(expected, abs=5e-5)


def test_noise_counts_less_at_a_larger_viewing_distance() -> None:
    near, far = (float(flip_map(noisy(waves(1)), waves(1), degrees).mean()) for degrees in (20.0, 67.0))
    assert far < 0.8 * near

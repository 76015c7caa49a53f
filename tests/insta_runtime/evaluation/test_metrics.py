"""Image metrics at values known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from insta_runtime.evaluation.metrics import head_mask, over_white, psnr, ssim_map


def noise(seed: int, size: int = 32) -> torch.Tensor:
    return torch.rand((size, size, 3), generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_constant_error() -> None:
    truth = torch.full((8, 8, 3), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-4)
    assert psnr(truth + 0.01, truth) == pytest.approx(40.0, abs=1e-3)
    assert psnr(truth, truth) == 100.0
    assert math.isnan(psnr(truth * math.nan, truth))


def test_psnr_over_a_mask_uses_only_its_pixels() -> None:
    truth, mask = torch.zeros((8, 8, 3)), torch.zeros((8, 8), dtype=torch.bool)
    assert math.isnan(psnr(truth, truth, mask))
    mask[:2] = True
    picture = torch.ones((8, 8, 3))
    picture[:2] = 0.1
    assert psnr(picture, truth, mask) == pytest.approx(20.0, abs=1e-4)


def test_ssim_of_equal_opposite_and_unrelated_pictures() -> None:
    picture = noise(0)
    assert float(ssim_map(picture, picture).mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(ssim_map(picture, 1.0 - picture).mean()) < -0.8
    assert abs(float(ssim_map(picture, noise(1)).mean())) < 0.15


def test_ssim_of_flat_pictures_is_its_luminance_term() -> None:
    a, b = torch.full((16, 16, 3), 0.4), torch.full((16, 16, 3), 0.6)
    expected = (2 * 0.4 * 0.6 + 0.01**2) / (0.4**2 + 0.6**2 + 0.01**2)
    assert float(ssim_map(a, b).mean()) == pytest.approx(expected, abs=2e-3)


def test_ssim_agrees_with_its_definition_at_one_window() -> None:
    a, b = noise(2, 11).double(), noise(3, 11).double()
    x = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = torch.tensor(np.outer(x, x) / np.outer(x, x).sum())[..., None]
    mean_a, mean_b = (window * a).sum((0, 1)), (window * b).sum((0, 1))
    var_a, var_b = (window * (a - mean_a) ** 2).sum((0, 1)), (window * (b - mean_b) ** 2).sum((0, 1))
    covariance = (window * (a - mean_a) * (b - mean_b)).sum((0, 1))
    c1, c2 = 1e-4, 9e-4
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    expected = luminance * (2 * covariance + c2) / (var_a + var_b + c2)
    assert float(ssim_map(a, b).mean()) == pytest.approx(float(expected.mean()), abs=1e-6)


def test_pictures_are_compared_over_white() -> None:
    rgb = np.full((2, 2, 3), 100, np.uint8)
    alpha = np.array([[0, 255], [51, 255]], np.uint8)
    a = alpha[..., None].astype(np.float32) / 255
    truth = over_white(np.concatenate([rgb / 255 * a, a], -1).astype(np.float32))
    torch.testing.assert_close(truth[0], torch.tensor([[1.0] * 3, [100 / 255] * 3]))
    torch.testing.assert_close(truth[1, 0], torch.full((3,), 0.2 * 100 / 255 + 0.8))
    torch.testing.assert_close(over_white(torch.ones(1, 1, 4)), torch.ones(1, 1, 3))


def test_the_head_region_is_the_matte_dilated_by_one_percent_of_the_side() -> None:
    alpha = np.zeros((200, 200), np.uint8)
    alpha[100, 100], alpha[20, 20] = 255, 127
    mask = head_mask(alpha)
    assert mask.sum() == 25
    assert mask[98:103, 98:103].all()

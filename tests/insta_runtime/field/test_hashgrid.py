"""The hash grid against a point-by-point reference in plain Python, its gradients against finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from insta_runtime.config import FieldConfig
from insta_runtime.errors import UserError
from insta_runtime.field.hashgrid import HashGrid, _Interpolate

# Resolutions 2, 4, 8, 16: dense up to 8 (1000 rows), hashed at 16 (5832 corners in 1024 rows).
MIXED = FieldConfig(levels=4, log2_entries=10, base=2, finest=16)


def make_grid(config: FieldConfig) -> HashGrid:
    grid = HashGrid(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        grid.table.copy_(torch.randn(grid.table.shape, generator=torch.Generator().manual_seed(1)))
    return grid


def reference(config: FieldConfig, table: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Section 3 of the paper, level by level and corner by corner, with Python's integers."""
    growth = (config.finest / config.base) ** (1 / max(1, config.levels - 1))
    entries, first, features = 2**config.log2_entries, 0, []
    for level in range(config.levels):
        n = math.floor(config.base * growth**level + 1e-6)
        cell = np.floor(point * n)
        inside = point * n - cell
        value = np.zeros(config.features)
        for corner in itertools.product((0, 1), repeat=3):
            x, y, z = (int(c) for c in cell + corner)
            if (n + 2) ** 3 <= entries:
                row = x + y * (n + 2) + z * (n + 2) ** 2
            else:
                row = (x ^ (y * 2654435761) ^ (z * 805459861)) % entries
            weight = np.prod([t if far else 1 - t for far, t in zip(corner, inside, strict=True)])
            value += weight * table[first + row]
        features.append(value)
        first += min((n + 2) ** 3, entries)
    assert first == len(table)
    return np.concatenate(features)


@pytest.mark.parametrize("features", [2, 4])
@pytest.mark.parametrize(
    "layout",
    [
        {"levels": 4, "log2_entries": 10, "base": 2, "finest": 16},  # dense, then hashed
        {"levels": 3, "log2_entries": 14, "base": 4, "finest": 16},  # all dense
        {"levels": 2, "log2_entries": 8, "base": 32, "finest": 512},  # all hashed
        {"levels": 1, "log2_entries": 8, "base": 4, "finest": 64},
    ],
)
def test_encoding_is_that_of_the_paper(layout: dict[str, int], features: int) -> None:
    config = FieldConfig(features=features, **layout)
    grid = make_grid(config).double()
    points = torch.rand((40, 3), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    points = torch.cat([points, torch.tensor([[0.0, 0, 0], [1, 1, 1], [0, 1, 0.5]]).double()])
    expected = [reference(config, grid.table.detach().numpy(), point) for point in points.numpy()]
    found = grid(points)
    assert found.shape == (43, config.levels * features)
    np.testing.assert_allclose(found.detach().numpy(), np.stack(expected), atol=1e-12)
    np.testing.assert_allclose(make_grid(config)(points.float()).detach().numpy(), np.stack(expected), atol=2e-3)


def test_points_outside_the_cube_are_clamped_to_it() -> None:
    grid = make_grid(MIXED)
    outside, face = torch.tensor([[-3.0, 0.5, 2.0]]), torch.tensor([[0.0, 0.5, 1.0]])
    assert torch.equal(grid(outside), grid(face))
    assert grid(outside[:0]).shape == (0, 8)


def test_weights_are_a_partition_of_one() -> None:
    index, weight = make_grid(MIXED).corners(torch.rand((100, 3)))
    torch.testing.assert_close(weight.sum(dim=0), torch.ones(400))
    assert weight.min() >= 0
    assert index.min() >= 0


@pytest.mark.parametrize("features", [2, 4, 6])
def test_gradient_of_the_table_agrees_with_finite_differences(features: int) -> None:
    grid = HashGrid(FieldConfig(2, features, 5, 2, 8), torch.Generator().manual_seed(0))
    index, weight = grid.corners(torch.rand((6, 3), dtype=torch.float64))
    assert len(index.unique()) < index.numel(), "rows are shared between points: their gradients must add up"
    table = torch.randn(grid.table.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: _Interpolate.apply(t, index, weight), (table,))


def test_gradient_in_float32_is_that_of_plain_indexing() -> None:
    grid = make_grid(MIXED)
    points, pull = torch.rand((200, 3)), torch.randn((200, 8))
    (grid(points) * pull).sum().backward()
    index, weight = grid.corners(points)
    table = grid.table.detach().clone().requires_grad_()
    plain = (table[index.long()] * weight[..., None]).sum(dim=0).view(4, 200, 2).transpose(0, 1).reshape(200, 8)
    (plain * pull).sum().backward()
    torch.testing.assert_close(grid.table.grad, table.grad)


def test_the_same_seed_gives_the_same_table() -> None:
    first, second, other = (HashGrid(MIXED, torch.Generator().manual_seed(s)).table for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert float(first.detach().abs().max()) <= 1e-4


@pytest.mark.parametrize("wrong", [{"features": 3}, {"base": 64, "finest": 32}])
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        FieldConfig(**wrong)


def test_slopes_along_the_points_are_those_of_differences() -> None:
    """Against float64 finite differences, inside cells, where the interpolation is smooth."""
    config = FieldConfig(levels=3, features=2, log2_entries=10, base=4, finest=16, hidden=16)
    grid = HashGrid(config, torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        grid.table.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(4))
    points = torch.tensor([[0.21, 0.33, 0.47], [0.52, 0.71, 0.13]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(grid, (points,), eps=1e-6, atol=1e-6)

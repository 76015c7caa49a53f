"""Gradients of the hash grid against torch, and its corners at the borders of the cube."""

from __future__ import annotations

import pytest
import torch

from insta_runtime.config import FieldConfig
from insta_runtime.field.hashgrid import HashGrid
from insta_runtime.native.field import field_constants, table_size
from insta_runtime.native.kernels import Kernels

CONFIGS = [
    FieldConfig(levels=4, features=2, log2_entries=12, base=8, finest=64, hidden=16),
    FieldConfig(levels=6, features=4, log2_entries=10, base=4, finest=100, hidden=16),
    FieldConfig(levels=1, features=8, log2_entries=12, base=8, finest=8, hidden=16),
]


def table_gradients(
    device: torch.device, config: FieldConfig, points: torch.Tensor, pulls: torch.Tensor, capacity: int
) -> torch.Tensor:
    """Table gradients from the gradients ``pulls`` (N, levels * features) of the features at ``points``."""
    kernels = Kernels(device, field_constants(config))
    count = len(points)
    position = torch.full((capacity, 3), torch.nan)
    position[:count] = points
    by_level = torch.full((config.levels, capacity, config.features), torch.nan)
    by_level[:, :count] = pulls.view(count, config.levels, config.features).transpose(0, 1)
    if device.type == "cpu":  # on a CPU the layout is feature by feature
        by_level = by_level.transpose(1, 2)
    none = dict.fromkeys(("first", "steps", "step_ray", "step_t", "slot", "direction", "masks", "frame", "histogram"))
    totals = torch.tensor([count, count, 0, 0], dtype=torch.int32, device=device)
    samples = kernels.struct(
        "Samples", position=position.to(device), totals=totals, capacity=capacity, max_steps=0, max_samples=0, **none
    )
    sums = torch.zeros(table_size(config), device=device)
    encoded = by_level.contiguous().to(device, kernels.storage).view(-1)
    kernels.launch("grid_backward", samples, encoded, sums, items=2 * capacity)
    return sums


def expected(config: FieldConfig, points: torch.Tensor, pulls: torch.Tensor) -> torch.Tensor:
    grid = HashGrid(config, torch.Generator().manual_seed(0))
    grid(points).backward(pulls)
    assert grid.table.grad is not None
    return grid.table.grad.view(-1)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.levels}x{config.features}")
@pytest.mark.parametrize(("count", "capacity"), [(500, 517), (1, 1), (0, 8)])
def test_gradients_agree(device: torch.device, config: FieldConfig, count: int, capacity: int) -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand((count, 3), generator=generator) * 1.2 - 0.1
    pulls = torch.randn((count, config.levels * config.features), generator=generator).half().float()
    sums = table_gradients(device, config, points, pulls, capacity).cpu()
    # float32 sums in another order
    torch.testing.assert_close(sums, expected(config, points, pulls), rtol=1e-4, atol=1e-4)


def test_corners_of_the_cube(device: torch.device) -> None:
    """At 0 and 1, and outside, a point lies on a corner: one row gets the whole gradient, no row beyond is touched."""
    config = CONFIGS[0]
    points = torch.cartesian_prod(*[torch.tensor([-5.0, 0.0, 1.0, 1.5])] * 3)
    pulls = torch.ones((len(points), config.levels * config.features))
    sums = table_gradients(device, config, points, pulls, len(points)).cpu()
    torch.testing.assert_close(sums, expected(config, points, pulls))
    assert (sums > 0).sum() == 8 * config.levels * config.features


def test_nan_points_do_not_read_outside_the_table(device: torch.device) -> None:
    config = CONFIGS[0]
    points = torch.full((40, 3), torch.nan)
    points[::2] = torch.inf
    pulls = torch.ones((40, config.levels * config.features))
    sums = table_gradients(device, config, points, pulls, 40)
    assert torch.isfinite(sums).all()

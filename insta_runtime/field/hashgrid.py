"""Multiresolution hash grid encoding (Mueller et al. 2022, Instant NGP, section 3).

Level l has the resolution ``floor(base * growth^l)`` across the unit cube.  If its lattice fits into the table it is
stored densely, otherwise its corners are hashed.  Features are interpolated trilinearly.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from insta_runtime.config import FieldConfig

PRIMES = (1, 2654435761, 805459861)
"""Factors of the spatial hash for x, y and z."""


def level_resolutions(config: FieldConfig) -> list[int]:
    """Number of cells along each side of the unit cube, for each level."""
    growth = (config.finest / config.base) ** (1.0 / max(1, config.levels - 1))
    return [math.floor(config.base * growth**level + 1e-6) for level in range(config.levels)]


def level_rows(config: FieldConfig) -> list[int]:
    """Number of feature vectors (table rows) of each level: one per lattice corner, at most ``2^log2_entries``."""
    return [min((r + 2) ** 3, 1 << config.log2_entries) for r in level_resolutions(config)]


class _Interpolate(torch.autograd.Function):
    """Weighted sum of table rows, ``sum_c weight[c, n] * table[index[c, n]]``; differentiable by table and weights."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index, weight, table)
        ctx.shape = table.shape
        return nn.functional.embedding_bag(index.T, table, per_sample_weights=weight.T, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor | None]:
        index, weight, rows = ctx.saved_tensors
        (gradient,) = gradients
        table = torch.zeros(ctx.shape, dtype=gradient.dtype, device=gradient.device)
        # On a CPU torch adds rows one by one; pairs of features as complex scalars are several times as fast.
        for first in range(0, ctx.shape[1], 2):
            pair = torch.view_as_complex(gradient[:, first : first + 2].contiguous())
            column = torch.zeros(ctx.shape[0], dtype=pair.dtype, device=pair.device)
            for corner in range(8):
                column.index_add_(0, index[corner], pair * weight[corner])
            table[:, first : first + 2] = torch.view_as_real(column)
        slopes = None
        if ctx.needs_input_grad[2]:
            slopes = torch.stack([(rows[index[corner].long()] * gradient).sum(dim=-1) for corner in range(8)])
        return table, None, slopes


class HashGrid(nn.Module):
    """Hash grid encoding of points of the unit cube: (N, 3) in [0, 1] -> (N, levels * features).

    Differentiable with respect to the table and, piecewise (trilinear interpolation), to the points.
    """

    def __init__(self, config: FieldConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.levels, self.features = config.levels, config.features
        entries = 1 << config.log2_entries
        resolution = level_resolutions(config)
        self.dense = sum((r + 2) ** 3 <= entries for r in resolution)  # the coarse levels come first
        sizes = level_rows(config)
        offsets = [sum(sizes[:level]) for level in range(config.levels)]
        table = torch.rand((sum(sizes), config.features), generator=generator) * 2e-4 - 1e-4
        self.table = nn.Parameter(table)
        self.entries = entries
        stride = torch.tensor([[1, r + 2, (r + 2) ** 2] for r in resolution], dtype=torch.int32)
        prime = torch.tensor(PRIMES, dtype=torch.int64).to(torch.int32)  # only the low bits are used
        stride[self.dense :] = prime
        self.stride: torch.Tensor
        self.offset: torch.Tensor
        self.resolution: torch.Tensor
        self.register_buffer("stride", stride, persistent=False)
        self.register_buffer("offset", torch.tensor(offsets, dtype=torch.int32), persistent=False)
        self.register_buffer("resolution", torch.tensor(resolution, dtype=torch.float32), persistent=False)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and points.requires_grad):
            index, weight = self.corners(points)
        features: torch.Tensor = _Interpolate.apply(self.table, index, weight)  # type: ignore[no-untyped-call]
        by_level = features.view(self.levels, len(points), self.features)
        return by_level.transpose(0, 1).reshape(len(points), self.levels * self.features)

    def corners(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Corners of the cells of ``points`` (N, 3): table rows, int32, and trilinear weights, (8, levels * N) each."""
        scaled = points.T.clamp(0.0, 1.0).contiguous()[:, None] * self.resolution.to(points.dtype)[:, None]
        cell = scaled.floor()
        far_weight = scaled - cell
        stride = self.stride.T[:, :, None]
        near = cell.to(torch.int32) * stride
        ends = torch.stack([near, near + stride])  # (2, 3 axes, L, N)
        weights = torch.stack([1.0 - far_weight, far_weight])
        x, y, z = ends.unbind(dim=1)
        x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
        d = self.dense
        summed = x[:, :, :, :d] + (y[:, :, :, :d] + z[:, :, :, :d])
        hashed = (x[:, :, :, d:] ^ (y[:, :, :, d:] ^ z[:, :, :, d:])) & (self.entries - 1)
        index = torch.cat([summed, hashed], dim=3) + self.offset[:, None]
        wx, wy, wz = weights.unbind(dim=1)
        weight = wx[:, None, None] * (wy[None, :, None] * wz[None, None, :])
        return index.view(8, -1), weight.view(8, -1)

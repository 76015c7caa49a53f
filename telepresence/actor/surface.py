"""Surface functions of the synthetic actor: normals, cylindrical texture map, texture lookup and noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

UV_HEIGHT = (-0.14, 0.17)
"""Lowest and highest y (metres) of the cylindrical texture map of the head."""


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit vertex normals (V, 3) of a mesh: area-weighted means of the triangle normals around each vertex."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total.index_add_(0, faces[:, i], normal)
    return functional.normalize(total, dim=1)


def unroll(rest: Tensor) -> Tensor:
    """Cylindrical texture coordinates (..., 2) in [-1, 1], angle about y and height, of rest positions (..., 3), m."""
    low, high = UV_HEIGHT
    u = torch.atan2(rest[..., 0], rest[..., 2]) / math.pi
    v = (rest[..., 1] - low) * (2.0 / (high - low)) - 1.0
    return torch.stack([u, v], -1)


def sample(texture: Tensor, uv: Tensor) -> Tensor:
    """Bilinear lookup of a texture (C, H, W) at ``uv`` (N, 2) in [-1, 1]: (N, C)."""
    found = functional.grid_sample(
        texture[None], uv[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, 0].T


def noise(generator: torch.Generator, height: int, width: int, cells_y: int, cells_x: int) -> Tensor:
    """Smooth noise (height, width), mean 0, standard deviation 1, with ``cells_y`` x ``cells_x`` random cells."""
    coarse = torch.randn(1, 1, cells_y + 2, cells_x + 2, generator=generator)
    fine = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0, 0]
    return (fine - fine.mean()) / fine.std()


def blob(position: Tensor, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Tensor:
    """Gaussian falloff (...) of ``position`` (..., 3) around ``centre``, with the given ``radii``; metres."""
    offset = (position - position.new_tensor(centre)) / position.new_tensor(radii)
    return torch.exp(-(offset * offset).sum(-1))


def linear(red: float, green: float, blue: float) -> Tensor:
    """Linear colour (3,) of an 8-bit screen colour, with gamma 2."""
    return (torch.tensor([red, green, blue]) / 255.0) ** 2

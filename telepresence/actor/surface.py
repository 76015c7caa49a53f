"""Small tools for surfaces: normals, the map that unrolls the head, noise to paint with."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

UV_HEIGHT = (-0.14, 0.17)
"""Lowest and highest y in metres of the unrolled head."""


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals (V, 3) of a mesh: of the triangles around each vertex, weighted by their area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total.index_add_(0, faces[:, i], normal)
    return functional.normalize(total, dim=1)


def unroll(rest: Tensor) -> Tensor:
    """Rest positions (..., 3) in metres to (u, v) in [-1, 1]: the angle about the y axis, and the height."""
    low, high = UV_HEIGHT
    u = torch.atan2(rest[..., 0], rest[..., 2]) / math.pi
    v = (rest[..., 1] - low) * (2.0 / (high - low)) - 1.0
    return torch.stack([u, v], -1)


def sample(texture: Tensor, uv: Tensor) -> Tensor:
    """Bilinear look-up of a texture (C, H, W) at ``uv`` (N, 2) in [-1, 1]: (N, C)."""
    found = functional.grid_sample(
        texture[None], uv[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, 0].T


def noise(generator: torch.Generator, height: int, width: int, cells_y: int, cells_x: int) -> Tensor:
    """Smooth noise (height, width), mean 0, standard deviation 1, with about that many bumps along each side."""
    coarse = torch.randn(1, 1, cells_y + 2, cells_x + 2, generator=generator)
    fine = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0, 0]
    return (fine - fine.mean()) / fine.std()


def blob(position: Tensor, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Tensor:
    """exp(-d^2) of ``position`` (..., 3), with d measured in ``radii`` from ``centre`` (metres): (...)."""
    offset = (position - position.new_tensor(centre)) / position.new_tensor(radii)
    return torch.exp(-(offset * offset).sum(-1))


def linear(red: float, green: float, blue: float) -> Tensor:
    """An 8-bit screen colour as light (3,); screen values are taken as square roots of light."""
    return (torch.tensor([red, green, blue]) / 255.0) ** 2

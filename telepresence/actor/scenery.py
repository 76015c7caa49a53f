"""Surroundings of the synthetic actor: the mesh of the clothes and a blurred image of a room."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from telepresence.actor.surface import linear

CLOTHES_COLOUR = linear(52, 74, 92)
"""Linear colour (3,) of the clothes."""

# Sweater: rings from the collar down, (y, half width, half depth, z of the centre) in metres, rest head space.
_RINGS = (
    (-0.140, 0.066, 0.060, -0.018),
    (-0.100, 0.067, 0.061, -0.018),
    (-0.094, 0.071, 0.065, -0.018),
    (-0.096, 0.077, 0.071, -0.018),
    (-0.108, 0.082, 0.077, -0.019),
    (-0.117, 0.088, 0.080, -0.020),
    (-0.124, 0.104, 0.085, -0.023),
    (-0.133, 0.130, 0.090, -0.027),
    (-0.144, 0.156, 0.096, -0.030),
    (-0.159, 0.180, 0.102, -0.033),
    (-0.181, 0.201, 0.108, -0.036),
    (-0.212, 0.215, 0.115, -0.038),
    (-0.260, 0.223, 0.122, -0.038),
    (-0.420, 0.228, 0.130, -0.038),
)


def clothes(around: int = 72) -> tuple[Tensor, Tensor]:
    """Mesh of a sweater: vertices (N, 3) in rest head space, metres, and faces (M, 3)."""
    angle = 2.0 * math.pi * torch.arange(around) / around
    rings = torch.tensor(_RINGS)
    # The front of the collar hangs lower than the back.
    dip = torch.linspace(1.0, 0.0, len(_RINGS)).clamp_min(0.0)[:, None] * 0.014 * angle.cos()
    vertices = torch.stack(
        [rings[:, 1:2] * angle.sin(), rings[:, 0:1] - dip, rings[:, 3:4] + rings[:, 2:3] * angle.cos()], -1
    ).reshape(-1, 3)
    ring, step = torch.meshgrid(torch.arange(len(_RINGS) - 1), torch.arange(around), indexing="ij")
    a = (ring * around + step).reshape(-1)
    b = (ring * around + (step + 1) % around).reshape(-1)
    faces = torch.cat([torch.stack([a, a + around, b], 1), torch.stack([b, a + around, b + around], 1)])
    return vertices, faces


def paint_room(size: int = 512, seed: int = 3) -> Tensor:
    """Blurred background image of a living room: (3, size, size) screen colours in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    glow = torch.exp(-(((x - 0.55) / 0.35) ** 2 + ((y - 0.15) / 0.4) ** 2))[..., None]
    wall = torch.tensor([0.56, 0.545, 0.52]) * (1.06 - 0.25 * x - 0.15 * y)[..., None]
    wall = wall + glow * torch.tensor([0.16, 0.12, 0.05])

    def box(left: float, top: float, right: float, bottom: float, colour: tuple[float, float, float]) -> None:
        inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        wall[inside] = torch.tensor(colour)

    def disc(cx: float, cy: float, radius: float, colour: tuple[float, float, float], amount: float) -> None:
        inside = ((x - cx) ** 2 + (y - cy) ** 2 < radius**2)[..., None]
        wall.copy_(torch.where(inside, wall + amount * (torch.tensor(colour) - wall), wall))

    box(0.02, 0.00, 0.20, 0.62, (0.93, 0.96, 0.98))  # a window
    box(0.105, 0.00, 0.120, 0.62, (0.70, 0.70, 0.68))
    box(0.02, 0.30, 0.20, 0.315, (0.70, 0.70, 0.68))
    for _ in range(14):  # a plant in front of it
        cx, cy, r = (float(v) for v in torch.rand(3, generator=generator))
        disc(0.05 + 0.16 * cx, 0.55 + 0.26 * cy, 0.018 + 0.030 * r, (0.20 + 0.1 * r, 0.36 + 0.1 * cy, 0.20), 0.85)
    for shelf in range(4):  # a book shelf
        top = 0.02 + 0.235 * shelf
        box(0.70, top + 0.195, 1.0, top + 0.215, (0.42, 0.32, 0.24))
        left = 0.715
        while left < 0.98:
            w, h, c = (float(v) for v in torch.rand(3, generator=generator))
            palette = (
                (0.48, 0.22, 0.18),
                (0.22, 0.30, 0.40),
                (0.70, 0.62, 0.48),
                (0.26, 0.34, 0.28),
                (0.62, 0.44, 0.26),
            )
            box(left, top + 0.05 + 0.06 * h, min(left + 0.014 + 0.022 * w, 1.0), top + 0.195, palette[int(c * 4.999)])
            left += 0.016 + 0.026 * w
    for _ in range(11):  # lights
        cx, cy, r = (float(v) for v in torch.rand(3, generator=generator))
        disc(0.26 + 0.42 * cx, 0.03 + 0.22 * cy, 0.015 + 0.012 * r, (1.5, 1.2, 0.75), 1.0)
    return _blur(wall.permute(2, 0, 1).clamp(0.0, 1.0), size / 42.0)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Blur an image (3, H, W) with a Gaussian of ``sigma`` pixels."""
    reach = int(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(image[None], (reach, reach, 0, 0), mode="replicate")
    padded = functional.conv2d(padded, kernel, groups=3)
    padded = functional.pad(padded, (0, 0, reach, reach), mode="replicate")
    return functional.conv2d(padded, kernel.transpose(2, 3), groups=3)[0]

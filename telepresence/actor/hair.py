"""Hair of the synthetic actor: strips of triangles that start at the scalp and follow a flow field over the head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from insta_runtime.smoothstep import smoothstep

_CENTRE = (0.0, 0.065, -0.005)
_PART = 0.026  # x in metres of the parting, on the subject's left

# The hairline: lowest height (metres) of the hair by the angle from the middle of the forehead (degrees).
_HAIRLINE_ANGLE = (0.0, 20.0, 38.0, 50.0, 57.0, 62.0, 68.0, 98.0, 106.0, 120.0, 145.0, 180.0)
_HAIRLINE_HEIGHT = (0.104, 0.107, 0.101, 0.084, 0.046, 0.042, 0.066, 0.064, 0.040, 0.005, -0.022, -0.026)


@dataclass(frozen=True)
class Hair:
    """Mesh of hair strips in rest head space.

    Attributes (N vertices):
        vertices (N, 3) metres; faces (M, 3) int64; tangent (N, 3) unit, root to tip; normal (N, 3) unit, away
        from the head; side (N, 3) unit, across the strip; strand (N, 3): position across in [-1, 1], along in
        [0, 1], and a random number of the strip in [0, 1].
    """

    vertices: Tensor
    faces: Tensor
    tangent: Tensor
    normal: Tensor
    side: Tensor
    strand: Tensor


def hairline(position: Tensor) -> Tensor:
    """Height in metres of scalp points (..., 3) above the hairline; negative where no hair grows."""
    centre = position.new_tensor(_CENTRE)
    offset = position - centre
    angle = torch.rad2deg(torch.atan2(offset[..., 0].abs(), offset[..., 2]))
    knots, heights = position.new_tensor(_HAIRLINE_ANGLE), position.new_tensor(_HAIRLINE_HEIGHT)
    right = torch.searchsorted(knots, angle.clamp(0.0, 179.99).contiguous(), right=True).clamp(1, len(knots) - 1)
    t = (angle - knots[right - 1]) / (knots[right] - knots[right - 1])
    return position[..., 1] - (heights[right - 1] + t * (heights[right] - heights[right - 1]))


class _Skull:
    """Surface of the head as a radius from its centre, by direction."""

    def __init__(self, points: Tensor) -> None:
        """``points`` (P, 3): outer surface of the head without ears, metres."""
        offset = points - points.new_tensor(_CENTRE)
        self._radius = offset.norm(dim=1)
        self._direction = offset / self._radius[:, None]

    def radius(self, direction: Tensor) -> Tensor:
        """Distance (N,) of the surface along unit directions (N, 3)."""
        weights = torch.softmax(500.0 * (direction @ self._direction.T), dim=1)
        radius: Tensor = weights @ self._radius
        return radius


def grow_hair(points: Tensor, seed: int = 0, roots: int = 2200, segments: int = 5) -> Hair:
    """Hair for a head with the outer surface ``points`` (P, 3) without ears, metres, rest head space.

    ``roots`` points are spread over a sphere; those above the hairline become strips of ``segments`` segments.
    """
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor(_CENTRE)
    skull = _Skull(points)

    def random(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(direction), generator=generator)

    # A spiral spreads the roots evenly over the sphere; random offsets hide the pattern.
    k = torch.arange(roots) + 0.5
    height, turn = 1.0 - 2.0 * k / roots, math.pi * (1.0 + math.sqrt(5.0)) * k
    radius = (1.0 - height * height).sqrt()
    direction = torch.stack([radius * turn.cos(), height, radius * turn.sin()], 1)
    direction = functional.normalize(direction + 0.03 * torch.randn(direction.shape, generator=generator), dim=1)
    direction = direction[hairline(centre + skull.radius(direction)[:, None] * direction) > 0.0]

    top = smoothstep(direction[:, 1], 0.25, 0.75)
    front = smoothstep(direction[:, 2], 0.0, 0.7)
    root = centre + skull.radius(direction)[:, None] * direction
    edge = smoothstep(hairline(root), 0.0, 0.03)
    length = (0.024 + 0.052 * top + 0.016 * front * top) * (0.50 + 0.50 * edge) * random(0.8, 1.2)
    lift = (0.0035 + 0.0095 * top + 0.007 * top * front) * (0.45 + 0.55 * edge) * random(0.5, 1.25)
    width = (0.0020 + 0.0016 * top) * (0.7 + 0.3 * edge) * random(0.7, 1.3)
    swerve = torch.deg2rad(random(-11.0, 11.0))
    wave, phase = random(0.0, 0.28), random(0.0, 2.0 * math.pi)

    path, outward = [], []
    for step in range(segments + 1):
        s = step / segments
        level = -0.001 + lift * min(1.0, 4.0 * s) * (0.40 + 0.60 * math.sin(math.pi * (0.15 + 0.72 * s)))
        path.append(centre + (skull.radius(direction) + level)[:, None] * direction)
        outward.append(direction)
        along = _flow(path[-1], direction)
        across = torch.linalg.cross(direction, along)
        angle = swerve + wave * torch.sin(phase + 5.0 * s)
        along = along * angle.cos()[:, None] + across * angle.sin()[:, None]
        direction = functional.normalize(
            direction + along * (length / segments / (path[-1] - centre).norm(dim=1))[:, None], dim=1
        )
    line = torch.stack(path, 1)  # (R, segments + 1, 3)
    normal = torch.stack(outward, 1)
    tangent = functional.normalize(torch.gradient(line, dim=1)[0], dim=2)
    side = functional.normalize(torch.linalg.cross(tangent, normal), dim=2)
    roll = torch.deg2rad(random(-12.0, 12.0))[:, None, None]
    side = side * roll.cos() + torch.linalg.cross(tangent, side) * roll.sin()
    steps = torch.linspace(0.0, 1.0, segments + 1)
    half = width[:, None] * (0.75 + 0.25 * (steps * 4.0).clamp_max(1.0)) * (1.0 - 0.92 * steps**2.5)
    edges = torch.stack([line - half[..., None] * side, line + half[..., None] * side], 2)  # (R, S + 1, 2, 3)

    count, rows = line.shape[:2]
    corner = (torch.arange(count)[:, None] * rows + torch.arange(rows - 1)).reshape(-1) * 2
    faces = torch.cat([corner[:, None] + torch.tensor([0, 1, 2]), corner[:, None] + torch.tensor([1, 3, 2])])
    own = torch.rand(count, 1, 1, generator=generator).expand(count, rows, 2)
    strand = torch.stack(
        [torch.tensor([-1.0, 1.0]).expand(count, rows, 2), steps[None, :, None].expand(count, rows, 2), own], -1
    )

    def both(values: Tensor) -> Tensor:
        return values[:, :, None].expand(count, rows, 2, 3).reshape(-1, 3)

    return Hair(edges.reshape(-1, 3), faces, both(tangent), both(normal), both(side), strand.reshape(-1, 3))


def _flow(position: Tensor, outward: Tensor) -> Tensor:
    """Unit directions (N, 3) of the hair at ``position``: from the parting to the sides, down and back."""
    top = smoothstep(outward[:, 1], 0.25, 0.85)
    temple = smoothstep(outward[:, 2], 0.05, 0.5)
    side = torch.tanh((position[:, 0] - _PART) / 0.012)
    flow = torch.stack([side * (0.25 + 0.75 * top), -(1.0 - 0.95 * top), -(0.25 + 0.35 * top + 0.9 * temple)], 1)
    flow = flow - (flow * outward).sum(1, keepdim=True) * outward
    return functional.normalize(flow, dim=1)

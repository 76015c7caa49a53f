"""Lighting of the synthetic actor: three lamps and the sky, with shadow maps, diffuse and specular shading.

Shadows come from a table computed once with depth maps: for every vertex, the visibility of a set of directions around
the head.  The head turns relative to the lamps, so a lamp's shadow is the mean of the table around its direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from insta_runtime.render.raster import rasterise
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Camera

_FAR = 20.0  # distance in metres of the depth maps' cameras, so large that perspective does not matter

# Key light (a window), fill light and rim light: direction towards the lamp, on the axes of `Actor.camera`, and its
# linear colour.
_LAMPS = (
    ((-0.55, -0.50, -0.75), (1.15, 1.08, 0.99)),
    ((0.80, -0.10, -0.55), (0.20, 0.22, 0.26)),
    ((0.62, -0.35, 0.62), (0.75, 0.80, 0.95)),
)
_SKY = (0.36, 0.37, 0.40)
_GROUND = (0.19, 0.16, 0.14)


def directions(count: int) -> Tensor:
    """Unit vectors (count, 3), evenly spread over the sphere."""
    k = torch.arange(count) + 0.5
    y, turn = 1.0 - 2.0 * k / count, math.pi * (1.0 + math.sqrt(5.0)) * k
    radius = (1.0 - y * y).sqrt()
    return torch.stack([radius * turn.cos(), y, radius * turn.sin()], 1)


def visibility(vertices: Tensor, faces: Tensor, towards: Tensor, size: int = 160, bias: float = 0.004) -> Tensor:
    """Visibility (V, D) in [0, 1], float32, of the directions ``towards`` (D, 3) from a mesh's vertices, head space.

    For each direction a depth map of ``size`` pixels is rendered; a vertex is visible where no surface lies more than
    ``bias`` metres in front of it.
    """
    camera = Camera(_FAR / 0.36 * size, _FAR / 0.36 * size, size / 2, size / 2, size, size)
    free = torch.empty(len(vertices), len(towards))
    centre = vertices.mean(0)
    for i, direction in enumerate(towards):
        up = torch.tensor([0.0, 1.0, 0.0]) if abs(float(direction[1])) < 0.9 else torch.tensor([1.0, 0.0, 0.0])
        right = functional.normalize(torch.linalg.cross(up, direction), dim=0)
        frame = torch.stack([right, torch.linalg.cross(direction, right), -direction])
        seen = (vertices - centre) @ frame.T + torch.tensor([0.0, 0.0, _FAR])
        depth = rasterise(seen, faces, camera).depth
        where = seen[:, :2] / seen[:, 2:] * (_FAR / 0.36 * 2.0)
        open_at = torch.zeros(len(vertices))
        for shift_x, shift_y in ((-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)):
            at = where + torch.tensor([shift_x, shift_y]) / size
            found = functional.grid_sample(
                depth[None, None], at[None, None], mode="nearest", padding_mode="border", align_corners=False
            )[0, 0, 0]
            open_at += 0.25 * (seen[:, 2] < found + bias)
        free[:, i] = open_at
    return free


class Lighting:
    """Lamps relative to one posed head: shadows, diffuse light and highlights at its surface points."""

    def __init__(self, rotation: Tensor, towards: Tensor, room: Tensor) -> None:
        """``rotation`` (3, 3) head to camera; ``towards`` (D, 3) the directions of the shadow table, head space;
        ``room`` (3, 3) room to camera."""
        lamps = functional.normalize(torch.tensor([lamp[0] for lamp in _LAMPS]), dim=1)
        self.to_lamp = lamps @ room.T  # (3, 3), camera space
        self.up = room @ torch.tensor([0.0, -1.0, 0.0])
        self.colour = torch.tensor([lamp[1] for lamp in _LAMPS])
        nearness = (self.to_lamp @ rotation) @ towards.T  # (3, D)
        self.shadow_weights = torch.softmax(14.0 * nearness, dim=1)

    def shadows(self, free: Tensor) -> Tensor:
        """Share (V, 3) of each lamp's light that reaches the vertices, from the visibility table (V, D)."""
        return smoothstep(free @ self.shadow_weights.T)

    def diffuse(self, normal: Tensor, shadow: Tensor, openness: Tensor, wrap: tuple[float, float, float]) -> Tensor:
        """Diffuse light (N, 3) at matt surfaces, with wrap lighting.

        ``normal`` (N, 3) unit, camera space; ``shadow`` (N, 3) share of each lamp's light; ``openness`` (N,) share of
        the sky; ``wrap`` distance that red, green and blue light reaches into the shade (subsurface scattering).
        """
        facing = normal @ self.to_lamp.T
        sky = (0.5 + 0.5 * (normal @ self.up)) * openness
        ground = openness - sky
        light = torch.empty_like(normal)
        for channel, reach in enumerate(wrap):
            lit = (facing + reach).clamp_min_(0.0).mul_(shadow) @ (self.colour[:, channel] / (1.0 + reach))
            light[:, channel] = lit.add_(sky, alpha=_SKY[channel]).add_(ground, alpha=_GROUND[channel])
        return light

    def highlight(self, normal: Tensor, view: Tensor, shadow: Tensor, lobes: tuple[tuple[int, float], ...]) -> Tensor:
        """Specular light (N, 3) of smooth surfaces (Blinn-Phong).

        ``view`` (N, 3) unit, towards the camera; ``lobes`` (sharpness, strength), where an exponent is 2 to the
        power of its sharpness.
        """
        cosine = self._half_cosine(normal, view).clamp_min_(0.0)
        return self._lobes(cosine, shadow, lobes)

    def hair_highlight(
        self, tangent: Tensor, view: Tensor, shadow: Tensor, lobes: tuple[tuple[int, float], ...]
    ) -> Tensor:
        """Specular light (N, 3) of fibres along ``tangent`` (N, 3) (Kajiya and Kay 1989); see `highlight`."""
        cosine = self._half_cosine(tangent, view)
        return self._lobes((1.0 - cosine * cosine).clamp_min_(0.0).sqrt_(), shadow, lobes)

    def _half_cosine(self, axis: Tensor, view: Tensor) -> Tensor:
        """Cosines (N, 3) between ``axis`` (N, 3) and the vectors half-way between the view and each lamp."""
        along = axis @ self.to_lamp.T + (axis * view).sum(1, keepdim=True)
        return along.div_((2.0 + 2.0 * (view @ self.to_lamp.T)).clamp_min_(1e-4).sqrt_())

    def _lobes(self, base: Tensor, shadow: Tensor, lobes: tuple[tuple[int, float], ...]) -> Tensor:
        shine = torch.zeros_like(base)
        done = 0
        for sharpness, strength in lobes:
            for _ in range(sharpness - done):
                base = base * base
            done = sharpness
            shine.add_(base, alpha=strength)
        return shine.mul_(shadow) @ self.colour

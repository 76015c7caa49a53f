"""Untextured renders of head-model variants, on which the face landmarker is run to compute a landmark embedding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from insta_runtime.head import HeadModel
from insta_runtime.render.raster import Raster
from insta_runtime.types import Float32, Float64, HeadState

SEED = 4
"""Seed of the random generator that draws the identity codes."""
IDENTITIES = 6
"""Number of random identities that are rendered, besides the mean face."""
IDENTITY_SCALE = 0.8
"""Standard deviation of each component of a random identity code."""


def head_variants(model: HeadModel) -> Iterator[tuple[Float32, HeadState, bool]]:
    """Iterate over a dozen variants of the head: (identity code (S,), head state, whether the mouth is open).

    These are the mean face, random identities, and expressions of the mean face (open mouths, raised brows).
    """
    rng = np.random.default_rng(SEED)
    mean = np.zeros(len(model.shape_dirs), dtype=np.float32)
    units = len(model.expression_names)
    yield mean, HeadState.neutral(units), False
    for _ in range(IDENTITIES):
        identity = mean.copy()
        leading = min(60, len(mean))  # later components have little variance
        identity[:leading] = IDENTITY_SCALE * rng.standard_normal(leading)
        yield identity, HeadState.neutral(units), False
    if model.basis == "flame":
        for angle in (0.15, 0.22, 0.3, 0.37, 0.26):
            yield mean, replace(HeadState.neutral(units), jaw_pose=np.array([angle, 0.0, 0.0], np.float32)), True
        return
    lower, upper = ("mouthLowerDownLeft", "mouthLowerDownRight"), ("mouthUpperUpLeft", "mouthUpperUpRight")
    brows = ("browInnerUp", "browOuterUpLeft", "browOuterUpRight")
    for names, opening in ((lower, 0.35), (upper, 0.5), ((), 0.65), (lower + upper, 0.4), (brows, 0.0)):
        state = HeadState.neutral(units)
        state.expression[[model.expression_names.index(name) for name in names]] = 0.7
        state.expression[model.expression_names.index("jawOpen")] = opening
        yield mean, state, opening > 0.0


def view_rotations() -> list[Float64]:
    """17 rotations (3, 3) from head to camera space: seven yaws at eye level, and five each from above and below."""
    angles = [(yaw, 0.0) for yaw in (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)]
    angles += [(yaw, pitch) for pitch in (-0.25, 0.25) for yaw in (-0.5, -0.25, 0.0, 0.25, 0.5)]
    rotations = []
    for yaw, pitch in angles:
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        rotations.append(np.diag([1.0, -1.0, -1.0]) @ nod @ turn)
    return rotations


def render_clay(vertices_cam: torch.Tensor, raster: Raster) -> NDArray[np.uint8]:
    """Shade a rasterised mesh as smooth, untextured clay, lit from the upper left: RGB image (H, W, 3) uint8.

    ``vertices_cam`` (V, 3) are the vertices in camera space, ``raster`` the rasterisation of that mesh.
    """
    faces = raster.faces
    corner = vertices_cam[faces]
    normal = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    smooth = torch.zeros_like(vertices_cam).index_add_(0, faces.flatten(), normal.repeat_interleave(3, 0))
    shade = raster.interpolate(torch.nn.functional.normalize(smooth, dim=1))
    light = torch.nn.functional.normalize(torch.tensor([-0.35, -0.5, -1.0]), dim=0)
    brightness = 0.25 + 0.75 * (torch.nn.functional.normalize(shade, dim=-1) @ light).clamp_min(0.0)
    image = brightness[..., None] * torch.tensor([0.80, 0.66, 0.58])
    image[~raster.mask] = torch.tensor([0.35, 0.38, 0.42])
    return np.ascontiguousarray((image * 255.0).to(torch.uint8).numpy())

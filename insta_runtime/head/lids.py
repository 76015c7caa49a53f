"""Eyelid directions for head models without a blink expression: lids rotate about the eyeball."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from insta_runtime.head.model import EYE_LEFT, EYE_RIGHT, SKIN
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Float32

MEET = 0.25
"""Position at which the closed lids meet, from the lower (0) to the upper (1) edge of the open eye."""
STRIP = 0.2
"""Half width, in eyeball radii, of the vertical strip in which the opening of the eye is measured."""
SEARCH = 1.1
"""Maximum elevation of lid vertices above or below the centre of the eye, radians."""
FADE = 0.6
"""Angle beyond the edge of a lid over which the motion of the skin fades out, radians."""
CORNER = 1.25
"""Distance from the middle of the eye to the corners of the opening, in eyeball radii."""


def eyelid_directions(
    template: Float32, faces: NDArray[np.int64], face_group: NDArray[np.int8], joints: Float32
) -> Float32:
    """Displacements (2, V, 3) float32 in metres that close the left, then the right eye.

    The opening is the widest gap between lid vertices, as an angle about the eye's horizontal axis.  Upper and
    lower lid rotate about that axis until they meet, less towards the corners and away from the eyeball.
    """
    skin = np.zeros(len(template), dtype=bool)
    skin[faces[face_group == SKIN]] = True
    result = np.zeros((2, *template.shape), dtype=np.float32)
    for side, group in enumerate((EYE_LEFT, EYE_RIGHT)):
        offset = template.astype(np.float64) - joints[3 + side]
        eyeball = np.unique(faces[face_group == group])
        radius = np.linalg.norm(offset[eyeball], axis=1).mean()
        x, y, z = offset.T / radius
        elevation, distance = np.arctan2(y, z), np.linalg.norm(offset, axis=1) / radius
        near = skin & (z > 0.0) & (distance < 1.6)
        strip = near & (np.abs(x) < STRIP) & (np.abs(elevation) < SEARCH)
        edges = np.sort(elevation[strip])
        if len(edges) < 2:
            continue  # this eye has no lids and cannot close
        gap = np.diff(edges).argmax()
        lower, upper = edges[gap], edges[gap + 1]
        meet = lower + MEET * (upper - lower)
        above, below = smoothstep(elevation, upper + FADE, upper), smoothstep(elevation, lower - FADE, lower)
        turn = np.where(elevation > 0.5 * (lower + upper), (upper - meet) * above, (lower - meet) * below)
        reach = smoothstep(np.hypot(y, z), 1.9, 1.3) * np.clip(1.0 - (x / CORNER) ** 2, 0.0, 1.0) ** 0.5
        turn *= np.where(skin & (z > 0.0), reach, 0.0)
        cos, sin = np.cos(turn), np.sin(turn)
        dy = radius * (cos * y - sin * z - y)
        dz = radius * (sin * y + cos * z - z)
        result[side] = np.stack([np.zeros_like(dy), dy, dz], axis=1)
    return result

"""Eyelids that close, for a head without a blink of its own: the lids turn about the eyeball."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from insta_runtime.head.model import EYE_LEFT, EYE_RIGHT, SKIN
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Float32

MEET = 0.25  # where the lids meet, from the lower (0) to the upper (1) edge of the open eye
STRIP = 0.2  # half width, in eyeball radii, of the strip in which the opening is measured
SEARCH = 1.1  # radians above and below the horizon of the eye in which the lids lie
FADE = 0.6  # radians beyond its edge over which a lid's skin comes to rest
CORNER = 1.25  # eyeball radii from the middle to where the opening ends


def eyelid_directions(
    template: Float32, faces: NDArray[np.int64], face_group: NDArray[np.int8], joints: Float32
) -> Float32:
    """(2, V, 3) float32 metres that close the left, the right eye.

    The opening is the widest gap between lid vertices, as an angle about the eye's horizontal axis.  Upper and
    lower lid turn about that axis until they meet, less towards the corners and away from the eyeball.
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
            continue  # no lids about this eye: it does not close
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

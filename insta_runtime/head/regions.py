"""Soft vertex masks of head models that have none, from joints and skin weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from insta_runtime.head.model import SKIN
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Float32

Array = NDArray[Any]

JAW = 2  # index of the jaw joint


def region_masks(
    template: Float32,
    faces: NDArray[np.int64],
    face_group: NDArray[np.int8],
    joints: Float32,
    skin_weights: Float32,
) -> dict[str, Float32]:
    """Soft vertex masks (V,) float32 in [0, 1] by name of the region, for `HeadModel.masks`; arguments as its fields.

    Lengths are relative to the distance between the eye joints, which is nearly proportional to the size of an adult
    head.  The mouth is located at the upper edge of the skin that the jaw joint moves.
    """
    unit = float(np.linalg.norm(joints[3] - joints[4]))
    eye = joints[3:].mean(0)
    skin = np.zeros(len(template), dtype=bool)
    skin[faces[face_group == SKIN]] = True
    p = (template - eye) / unit
    x, y, z = p.T

    middle = skin & (np.abs(x) < 0.15) & (z > 0.0)
    lower = np.flatnonzero(middle & (skin_weights[:, JAW] > 0.5))
    front = lower[z[lower] > z[lower].max() - 0.3]
    mouth_y = y[front].max()
    mouth_z = z[front[y[front] > mouth_y - 0.15]].max()
    chin = front[y[front].argmin()]

    lip_radius = np.sqrt((x / 0.45) ** 2 + ((y - mouth_y) / 0.24) ** 2)
    lips = smoothstep(lip_radius, 1.3, 0.8) * (z > mouth_z - 0.4)
    mouth_radius = np.sqrt((x / 0.75) ** 2 + ((y - mouth_y + 0.05) / 0.45) ** 2)
    mouth = smoothstep(mouth_radius, 1.25, 0.85) * (z > mouth_z - 0.9)

    eyes = np.where(skin, 0.0, 1.0)
    for joint in joints[3:]:
        away = np.linalg.norm((template - joint) / unit / [1.25, 1.0, 1.0], axis=1)
        eyes = np.maximum(eyes, smoothstep(away, 0.42, 0.28) * (template[:, 2] > joint[2] - 0.1 * unit))

    ears = smoothstep(np.abs(x), 1.12, 1.28) * smoothstep(np.abs(y + 0.2), 0.75, 0.6) * smoothstep(z, -0.5, -0.7)
    neck = smoothstep(y[chin] - 0.2 + 0.34 * (z[chin] - z) - y, -0.1, 0.2)
    hairline = np.interp(-z, [0.0, 0.5, 0.8, 1.2, 1.6, 2.6], [1.02, 0.95, 0.57, 0.0, -0.57, -1.22])
    scalp = smoothstep(y - hairline, -0.1, 0.16) * (1.0 - ears) * (1.0 - neck)
    face = (1.0 - scalp) * (1.0 - ears) * (1.0 - neck)
    masks = {"mouth": mouth, "lips": lips, "eyes": eyes, "scalp": scalp, "ears": ears, "neck": neck, "face": face}
    return {name: np.where(skin | (name == "eyes"), mask, 0.0).astype(np.float32) for name, mask in masks.items()}

"""Crop of the base mesh at a collar line, skinning weights and triangles."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from open_head.makehuman import EYE_LEFT, EYE_RIGHT, PARTS, SKIN, Array, Wheel

HEAD_SHARE: Final = {"head": 1.0, "neck03": 0.75, "neck02": 0.5, "neck01": 0.25}
"""Fraction of a bone's weight that follows the head; the rest stays with the shoulders."""

COLLAR: Final = 0.41
"""Least weight on head and neck bones of skin that is kept: the rest is cut off at a collar line."""


def skin_weights(wheel: Wheel) -> tuple[Array, Array]:
    """Weights (N, 5) of root, neck, jaw, left and right eye, and (N,) the share of head and neck bones."""
    weights = np.zeros((len(wheel.vertices), 5))
    collar = np.zeros(len(wheel.vertices))
    for bone, entries in wheel.weights.items():
        if not entries:
            continue
        chain = wheel.chain(bone)
        index = np.array([i for i, _ in entries], dtype=np.int64)
        value = np.array([w for _, w in entries])
        if "jaw" in chain:
            weights[index, 2] += value
        elif share := next((HEAD_SHARE[name] for name in chain if name in HEAD_SHARE), 0.0):
            weights[index, 1] += share * value
        if "neck01" in chain:
            collar[index] += value
    for part, column in ((EYE_LEFT, 3), (EYE_RIGHT, 4)):
        eyeball = np.unique(wheel.quads[PARTS[part]])
        weights[eyeball] = 0.0
        weights[eyeball, column] = 1.0
    weights[:, 0] = np.maximum(0.0, 1.0 - weights.sum(1))
    return weights / weights.sum(1, keepdims=True), np.maximum(collar, collar[wheel.mirror])


def crop(wheel: Wheel, collar: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """Kept vertices (V,) of the base mesh, quads (Q, 4) in the kept numbering, and the part of each quad."""
    quads, parts = [], []
    for part, name in enumerate(PARTS):
        q = wheel.quads[name]
        if part == SKIN:
            q = q[(collar[q] > COLLAR).all(1)]
        quads.append(q)
        parts.append(np.full(len(q), part, dtype=np.int8))
    every = np.concatenate(quads)
    kept = np.unique(every)
    return kept, np.searchsorted(kept, every), np.concatenate(parts)


def triangulate(quads: NDArray[np.int64], vertices: Array) -> NDArray[np.int64]:
    """Split each quad along its shorter diagonal; triangle 2 i and 2 i + 1 belong to quad i."""
    corner = vertices[quads]
    first = np.linalg.norm(corner[:, 0] - corner[:, 2], axis=1) <= np.linalg.norm(corner[:, 1] - corner[:, 3], axis=1)
    order = np.where(first[:, None], [[0, 1, 2, 0, 2, 3]], [[1, 2, 3, 1, 3, 0]])
    return np.take_along_axis(quads, order, axis=1).reshape(-1, 3)

"""The expression code of the original: sixteen numbers as they are, for what is nearest to the lips, ones elsewhere.

INSTA gives the field the first sixteen expression components of FLAME, raw, where the nearest triangle is one of the
lips, and the constant 1 everywhere else, in occupancy too (Zielonka et al. 2023, section "expression conditioning").
A head of ARKit's units has no components: of its units those count that move the mouth.
"""

from __future__ import annotations

import numpy as np
import torch

from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, HeadState

LIPS_WIDTH = 16
LIPS_UNITS: tuple[tuple[str, ...], ...] = (
    ("jawOpen",),
    ("mouthClose",),
    ("mouthFunnel",),
    ("mouthPucker",),
    ("mouthLeft",),
    ("mouthRight",),
    ("mouthSmileLeft",),
    ("mouthSmileRight",),
    ("mouthFrownLeft", "mouthFrownRight"),
    ("mouthStretchLeft", "mouthStretchRight"),
    ("mouthUpperUpLeft", "mouthUpperUpRight"),
    ("mouthLowerDownLeft", "mouthLowerDownRight"),
    ("mouthRollLower", "mouthPressLeft", "mouthPressRight"),
    ("mouthRollUpper",),
    ("mouthShrugLower", "mouthShrugUpper"),
    ("cheekPuff",),
)


class LipsNumbers:
    """Turns a head state into (LIPS_WIDTH,) float32.  A head with fewer components leaves the rest zero."""

    def __init__(self, head: HeadModel) -> None:
        units = len(head.expression_names)
        self._matrix = np.zeros((LIPS_WIDTH, units), dtype=np.float32)
        if head.basis == "arkit52":
            for row, group in enumerate(LIPS_UNITS):
                for name in group:
                    self._matrix[row, head.expression_names.index(name)] = 1.0 / len(group)
        else:
            count = min(LIPS_WIDTH, units)
            self._matrix[range(count), range(count)] = 1.0

    def __call__(self, state: HeadState) -> Float32:
        numbers: Float32 = self._matrix @ state.expression
        return numbers


def condition_lips(codes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Codes (N, C) where the first of masks (N, 2) is one, ones where it is zero: (N, C)."""
    return 1.0 + masks[:, :1] * (codes - 1.0)

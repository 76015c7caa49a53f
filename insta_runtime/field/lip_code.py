"""Expression code of INSTA: sixteen raw numbers near the lips, ones elsewhere.

INSTA conditions the field on the first sixteen expression components of FLAME where the nearest triangle is one of the
lips, and on the constant 1 everywhere else, including in the occupancy grid (Zielonka et al. 2023, section "expression
conditioning").  For a head with ARKit units, the units that move the mouth replace the components.
"""

from __future__ import annotations

import numpy as np
import torch

from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, HeadState

LIPS_WIDTH = 16
"""Length of the lip code."""
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
"""ARKit units of the mouth; the units of one group are averaged to one number of the code."""


class LipCode:
    """Computes the lip code (LIPS_WIDTH,) float32 of a head state: `LIPS_UNITS`, or FLAME's first components.

    It is padded with zeros if the head has fewer components.
    """

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
    """Interpolate linearly between ones and lip ``codes`` (N, C) by the lip mask, the first column of ``masks`` (N, 2).

    Returns the conditioning input of the radiance field, (N, C): the code where the mask is 1, ones where it is 0.
    """
    return 1.0 + masks[:, :1] * (codes - 1.0)

"""The expression code: what the field is told about mouth and eyes beyond what the mesh already does.

A code has a mouth part and an eye part; a sample sees each multiplied by a smooth mask around that region and zero
elsewhere (`warp.CanonicalSamples.masks`), in training, occupancy and display alike.
"""

from __future__ import annotations

import numpy as np
import torch

from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, HeadState

MOUTH_UNITS: tuple[tuple[str, ...], ...] = (
    ("jawOpen",),
    ("mouthClose",),
    ("mouthFunnel",),
    ("mouthPucker",),
    ("mouthSmileLeft", "mouthSmileRight"),
    ("mouthFrownLeft", "mouthFrownRight"),
    ("mouthStretchLeft", "mouthStretchRight"),
    ("mouthUpperUpLeft", "mouthUpperUpRight"),
    ("mouthLowerDownLeft", "mouthLowerDownRight"),
    ("mouthRollLower", "mouthRollUpper", "mouthPressLeft", "mouthPressRight"),
)
EYE_UNITS: tuple[tuple[str, ...], ...] = (
    ("eyeBlinkLeft",),
    ("eyeBlinkRight",),
    ("eyeSquintLeft", "eyeSquintRight"),
    ("eyeWideLeft", "eyeWideRight"),
)
FLAME_COMPONENTS = 7  # with the jaw's three angles they make the ten numbers of the mouth's code
MOUTH_WIDTH = len(MOUTH_UNITS)
EYE_WIDTH = len(EYE_UNITS) + 2
CODE_WIDTH = MOUTH_WIDTH + EYE_WIDTH


class ExpressionCode:
    """Turns a head state into a code: (CODE_WIDTH,) float32, mouth first, about one in size."""

    def __init__(self, head: HeadModel) -> None:
        self._arkit = head.basis == "arkit52"
        if self._arkit:
            column = {name: i for i, name in enumerate(head.expression_names)}
            groups = MOUTH_UNITS + EYE_UNITS
            self._matrix = np.zeros((len(groups), len(column)), dtype=np.float32)
            for row, group in enumerate(groups):
                for name in group:
                    self._matrix[row, column[name]] = 1.0 / len(group)

    def __call__(self, state: HeadState) -> Float32:
        gaze = state.eye_pose.mean(axis=0)[:2] * 2.0
        if self._arkit:
            units = self._matrix @ state.expression
            lids = np.maximum(units[MOUTH_WIDTH : MOUTH_WIDTH + 2], state.eyelids)
            code = [units[:MOUTH_WIDTH], lids, units[MOUTH_WIDTH + 2 :], gaze]
        else:
            mouth = state.expression[:FLAME_COMPONENTS] / 2.0
            code = [mouth, state.jaw_pose * 4.0, state.eyelids, state.expression[7:9] / 2.0, gaze]
        return np.concatenate(code).astype(np.float32)


def condition(codes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Fade codes (N, CODE_WIDTH) by the masks (N, 2) of mouth and eyes: (N, CODE_WIDTH)."""
    mouth, eyes = codes.split([MOUTH_WIDTH, EYE_WIDTH], dim=-1)
    return torch.cat([mouth * masks[:, :1], eyes * masks[:, 1:]], dim=-1)

"""Pose refinement: a learned correction of tracked poses of the head, and of mouth and eyes relative to it.

Face landmarks determine a head's pose with systematic errors: an open mouth tilts it, a turned head shifts it sideways.
The error is small at the face and many pixels at the crown.  It is a function of the tracked head state, learned from
the training frames (`learn.pose_refinement`) and applied to every state that is rendered, of any driver.

Hair and outline determine most of the head's motion, while landmarks are more accurate for the inner face.  So mouth
and eyes have motions of their own, which blend into the head's as their masks fade.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Float32, HeadState
from insta_runtime.warp.warp import MOTION, PARTS, TURN_RADIUS

MOTIONS = (1 + PARTS) * MOTION
"""Length of the vector of the motions of one frame: `MOTION` numbers each of the head, the mouth and the eyes."""
COLUMNS = 4 + MOTIONS
"""Number of columns of `PoseRefinement.table`: mean, divisor, minimum and maximum of a feature, and its weights."""
PLACE = 6
"""Number of features of the head's rotation and position; their pairwise products are features, too."""
_AHEAD = np.diag([1.0, -1.0, -1.0])  # rotation of a face that looks into the camera
_PAIRS = np.triu_indices(PLACE)


def pose_features(state: HeadState) -> Float32:
    """Regression features of a head state: (F,) float32, each of a magnitude of about one.

    They are the constant 1; the rotation (3) relative to a head that faces the camera, the position in the image (2)
    and the logarithm of the distance; the pairwise products of these six; expression weights, jaw pose and eyelids.
    """
    turn = axis_angle(_AHEAD @ rotation_matrix(state.rotation)) / 0.3
    x, y, z = (float(value) for value in state.translation)
    far = max(z, 0.05)
    place = np.clip([*turn, x / far / 0.2, y / far / 0.2, np.log(far / 0.6)], -8.0, 8.0)
    products = place[_PAIRS[0]] * place[_PAIRS[1]]
    parts = [[1.0], place, products, state.expression, state.jaw_pose, state.eyelids]
    return np.concatenate(parts).astype(np.float32)


def count_features(expressions: int) -> int:
    """Number F of `pose_features` of a head with ``expressions`` expression weights."""
    return 1 + PLACE + len(_PAIRS[0]) + expressions + 3 + 2


@dataclass(frozen=True)
class PoseRefinement:
    """Learned pose correction: a linear regression of motions on `pose_features`.

    Attributes:
        table: (F, COLUMNS) float32; for each feature its mean, its divisor, its smallest and largest value in training
            (features are clamped to this range), and its weights for the `MOTIONS` motions.
    """

    table: Float32

    def __post_init__(self) -> None:
        if not (np.isfinite(self.table).all() and (self.table[:, 1] > 0.0).all()):
            raise ValueError("its pose refinement is damaged")

    @staticmethod
    def identity(expressions: int) -> PoseRefinement:
        """Pose refinement that changes nothing, for a head with ``expressions`` expression weights."""
        table = np.zeros((count_features(expressions), COLUMNS), dtype=np.float32)
        table[:, 1] = 1.0
        return PoseRefinement(table)

    @staticmethod
    def from_table(table: Float32) -> PoseRefinement:
        """Pose refinement with a stored table; in older tables mouth and eyes have no columns and follow the head.

        Raises ValueError if the table is damaged.
        """
        if table.ndim == 2 and table.shape[1] == 4 + MOTION:
            table = np.concatenate([table[:, :4], *[table[:, 4:]] * (1 + PARTS)], axis=1)
        return PoseRefinement(table)

    def refine(self, state: HeadState) -> tuple[HeadState, Float32]:
        """Refined head state for rendering the tracked ``state``, and the `part_motions` (PARTS, MOTION) float32."""
        mean, scale, low, high = self.table[:, :4].T
        weights = self.table[:, 4:]
        if not weights.any():
            return state, np.zeros((PARTS, MOTION), dtype=np.float32)
        features = np.clip(pose_features(state), low, high)
        motions = (features - mean) / scale @ weights
        return move_head(state, motions), part_motions(motions)


def part_motions(motions: Float32) -> Float32:
    """Motions (PARTS, MOTION) of ray samples in mouth and eyes relative to the moved head, from ``motions`` (MOTIONS,).

    Samples move opposite to their part: when a part moves one way, a fixed ray meets it farther the other way.
    """
    head, *parts = motions.reshape(1 + PARTS, MOTION)
    return np.stack([head - part for part in parts])


def move_head(state: HeadState, motions: Float32) -> HeadState:
    """``state`` with its head pose changed by a small rigid motion in head space: the first MOTION of ``motions``."""
    motion = motions[:MOTION]
    rotation = rotation_matrix(state.rotation)
    turn = rotation_matrix(motion[3:] / TURN_RADIUS)
    return replace(
        state,
        rotation=axis_angle(rotation @ turn).astype(np.float32),
        translation=(state.translation + rotation @ motion[:3]).astype(np.float32),
    )

"""Where the head really is, and mouth and eyes: corrections of what was tracked, learned with the avatar.

Landmarks of the face tell a head's pose with errors that repeat: an open mouth tips it, a turn pulls it sideways.
On the face that shows little, at the crown it is many pixels.  What repeats is a function of the tracked state, and
is learned from the pictures (`learn.registration`); here it is applied, whoever drives the face.

Hair and outline say most of the head's motion, and landmarks know the inner face better: so mouth and eyes have motions
of their own, from where they were tracked, which fade into the head's as their masks do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Float32, HeadState
from insta_runtime.warp.warp import LEVER, MOTION, PARTS

MOTIONS = (1 + PARTS) * MOTION  # numbers of the head's motion, then of mouth and eyes
COLUMNS = 4 + MOTIONS  # of a registration's table
PLACE = 6  # features of where the head is and how it is turned; their products are features too
_AHEAD = np.diag([1.0, -1.0, -1.0])  # the rotation of a face that looks into the camera
_PAIRS = np.triu_indices(PLACE)


def pose_features(state: HeadState) -> Float32:
    """What a correction depends on: (F,) float32, each about one in size.

    One; the turn away from the camera, and where the head is in the picture and how far away; the products of these;
    expression, jaw and lids.
    """
    turn = axis_angle(_AHEAD @ rotation_matrix(state.rotation)) / 0.3
    x, y, z = (float(value) for value in state.translation)
    far = max(z, 0.05)
    place = np.clip([*turn, x / far / 0.2, y / far / 0.2, np.log(far / 0.6)], -8.0, 8.0)
    products = place[_PAIRS[0]] * place[_PAIRS[1]]
    parts = [[1.0], place, products, state.expression, state.jaw_pose, state.eyelids]
    return np.concatenate(parts).astype(np.float32)


def count_features(expressions: int) -> int:
    """How many `pose_features` a state with so many expression numbers has."""
    return 1 + PLACE + len(_PAIRS[0]) + expressions + 3 + 2


@dataclass(frozen=True)
class Registration:
    """The learned correction, a ridge regression on `pose_features`.

    Attributes:
        table: (F, COLUMNS) float32; of each feature its mean, what it is divided by, the least and the largest value
            that was learned from, beyond which nothing is guessed, and what it adds to the motions.
    """

    table: Float32

    def __post_init__(self) -> None:
        if not (np.isfinite(self.table).all() and (self.table[:, 1] > 0.0).all()):
            raise ValueError("the registration is damaged")

    @staticmethod
    def none(expressions: int) -> Registration:
        """The one that corrects nothing."""
        table = np.zeros((count_features(expressions), COLUMNS), dtype=np.float32)
        table[:, 1] = 1.0
        return Registration(table)

    @staticmethod
    def stored(table: Float32) -> Registration:
        """That of a table as it was saved: in older ones mouth and eyes move with the head.  ValueError if damaged."""
        if table.ndim == 2 and table.shape[1] == 4 + MOTION:
            table = np.concatenate([table[:, :4], *[table[:, 4:]] * (1 + PARTS)], axis=1)
        return Registration(table)

    def corrected(self, state: HeadState) -> tuple[HeadState, Float32]:
        """How the avatar is to be shown in ``state``: with its pose, and with mouth and eyes moved `apart`."""
        mean, scale, low, high = self.table[:, :4].T
        weights = self.table[:, 4:]
        if not weights.any():
            return state, np.zeros((PARTS, MOTION), dtype=np.float32)
        features = np.clip(pose_features(state), low, high)
        motions = (features - mean) / scale @ weights
        return moved(state, motions), apart(motions)


def apart(motions: Float32) -> Float32:
    """What the motions (MOTIONS,) of a picture do to samples of mouth and eyes, the head being moved: (PARTS, MOTION).

    As a part moves one way, what a ray meets of it lies the other way in its space.
    """
    head, *parts = motions.reshape(1 + PARTS, MOTION)
    return np.stack([head - part for part in parts])


def moved(state: HeadState, motions: Float32) -> HeadState:
    """``state`` with its head moved by the first of ``motions`` in the head's own space."""
    motion = motions[:MOTION]
    rotation = rotation_matrix(state.rotation)
    turn = rotation_matrix(motion[3:] / LEVER)
    return replace(
        state,
        rotation=axis_angle(rotation @ turn).astype(np.float32),
        translation=(state.translation + rotation @ motion[:3]).astype(np.float32),
    )

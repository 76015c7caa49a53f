"""Where the head really is: a correction of tracked poses that is learned with the avatar.

Landmarks of the face tell a head's pose with errors that repeat: an open mouth tips it, a turn pulls it sideways.  On the
face that shows little, at the crown it is many pixels.  What repeats is a function of the tracked state, and is learned
from the pictures (`learn.registration`); here it is applied, whoever drives the face.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from insta_runtime.field.conditioning import CODE_WIDTH
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Float32, HeadState

MOTION = 6  # metres along x, y, z in head space, then a turn about them, in metres at a distance of LEVER
LEVER = 0.1  # metres
FEATURES_OF_POSE = 7 + CODE_WIDTH
_AHEAD = np.diag([1.0, -1.0, -1.0])  # the rotation of a face that looks into the camera


def pose_features(state: HeadState, code: Float32) -> Float32:
    """What a correction depends on: (FEATURES_OF_POSE,) float32, about one in size.

    One; the turn away from the camera; where the head is in the picture, and how far away; the expression ``code``.
    """
    turn = axis_angle(_AHEAD @ rotation_matrix(state.rotation)) / 0.3
    x, y, z = (float(value) for value in state.translation)
    far = max(z, 0.05)
    place = np.clip([x / far / 0.2, y / far / 0.2, np.log(far / 0.6)], -3.0, 3.0)
    return np.concatenate([[1.0], turn, place, code]).astype(np.float32)


@dataclass(frozen=True)
class Registration:
    """The learned correction: ``weights`` (MOTION, FEATURES_OF_POSE) float32 of `pose_features`."""

    weights: Float32

    @staticmethod
    def none() -> Registration:
        """The one that corrects nothing."""
        return Registration(np.zeros((MOTION, FEATURES_OF_POSE), dtype=np.float32))

    def corrected(self, state: HeadState, code: Float32) -> HeadState:
        """``state``, whose expression code is ``code``, with the pose that the avatar is to be shown in."""
        if not self.weights.any():
            return state
        return moved(state, self.weights @ pose_features(state, code))


def moved(state: HeadState, motion: Float32) -> HeadState:
    """``state`` with its head moved by ``motion`` (MOTION,) in the head's own space."""
    rotation = rotation_matrix(state.rotation)
    turn = rotation_matrix(motion[3:] / LEVER)
    return replace(
        state,
        rotation=axis_angle(rotation @ turn).astype(np.float32),
        translation=(state.translation + rotation @ motion[:3]).astype(np.float32),
    )

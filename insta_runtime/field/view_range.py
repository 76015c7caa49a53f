"""Range of view directions seen in training, and clamping of other views to it.

Colours depend on the view direction, because the light does not turn with the head.  The field extrapolates badly to
views far from those it was trained on, so it is evaluated with the nearest view direction inside the range instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from insta_runtime.geometry import rotation_matrix
from insta_runtime.types import Float32, Float64, HeadState

SLACK = math.radians(3.0)
"""Margin of the range beyond the views seen in training, radians."""


@dataclass(frozen=True)
class ViewRange:
    """Range of camera positions around the head: azimuth (to the subject's left) and elevation, radians, 0 in front.

    Attributes:
        low, high: (2,) smallest and largest azimuth and elevation.
    """

    low: Float64
    high: Float64

    @staticmethod
    def unbounded() -> ViewRange:
        """Range of all views: nothing is clamped."""
        endless = np.full(2, np.inf)
        return ViewRange(-endless, endless)

    @staticmethod
    def of(angles: Float64) -> ViewRange:
        """Range that covers ``angles`` (N, 2), rows from `view_angles`, with the margin `SLACK`."""
        return ViewRange(angles.min(axis=0) - SLACK, angles.max(axis=0) + SLACK)

    def turn(self, state: HeadState) -> Float32:
        """Rotation (3, 3) in head space from the view direction of ``state`` to the nearest one in the range.

        It is the identity for a view direction inside the range.
        """
        angles = view_angles(state)
        nearest = angles.clip(self.low, self.high)
        if (nearest == angles).all():
            return np.eye(3, dtype=np.float32)
        before, after = _direction(angles), _direction(nearest)
        axis = np.cross(before, after)
        sine, cosine = float(np.linalg.norm(axis)), float(before @ after)
        return rotation_matrix(axis * (math.atan2(sine, cosine) / max(sine, 1e-9))).astype(np.float32)


def view_angles(state: HeadState) -> Float64:
    """Azimuth (to the subject's left) and elevation (2,) of the camera in head space, radians; 0 in front."""
    eye = -rotation_matrix(state.rotation).T @ state.translation
    return np.array([math.atan2(eye[0], eye[2]), math.atan2(eye[1], math.hypot(eye[0], eye[2]))])


def _direction(angles: Float64) -> Float64:
    azimuth, elevation = angles
    level = math.cos(elevation)
    return np.array([level * math.sin(azimuth), math.sin(elevation), level * math.cos(azimuth)])

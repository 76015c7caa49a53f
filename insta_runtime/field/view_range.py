"""From where a head was seen, and what to make of a view that nobody had.

Colours depend on the view, for the light does not turn with the head.  What a field says of a view that it never
learned is a guess that gets wilder the farther away it is: it is asked for the nearest view that was learned instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from insta_runtime.geometry import rotation_matrix
from insta_runtime.types import Float32, Float64, HeadState

SLACK = math.radians(3.0)  # beyond what was seen


@dataclass(frozen=True)
class ViewRange:
    """Where around the head the camera was: azimuth and elevation in radians, zero before the face, left and up."""

    low: Float64
    high: Float64

    @staticmethod
    def unknown() -> ViewRange:
        """Everywhere."""
        endless = np.full(2, np.inf)
        return ViewRange(-endless, endless)

    @staticmethod
    def of(angles: Float64) -> ViewRange:
        """The range of ``angles`` (N, 2), as `view_angles` gives them, and some slack."""
        return ViewRange(angles.min(axis=0) - SLACK, angles.max(axis=0) + SLACK)

    def turn(self, state: HeadState) -> Float32:
        """The (3, 3) rotation, in head space, of the rays of ``state``'s view to those of the nearest one in range."""
        angles = view_angles(state)
        nearest = angles.clip(self.low, self.high)
        if (nearest == angles).all():
            return np.eye(3, dtype=np.float32)
        before, after = _direction(angles), _direction(nearest)
        axis = np.cross(before, after)
        sine, cosine = float(np.linalg.norm(axis)), float(before @ after)
        return rotation_matrix(axis * (math.atan2(sine, cosine) / max(sine, 1e-9))).astype(np.float32)


def view_angles(state: HeadState) -> Float64:
    """Azimuth and elevation (2,) of the camera as the head sees it, radians."""
    eye = -rotation_matrix(state.rotation).T @ state.translation
    return np.array([math.atan2(eye[0], eye[2]), math.atan2(eye[1], math.hypot(eye[0], eye[2]))])


def _direction(angles: Float64) -> Float64:
    azimuth, elevation = angles
    level = math.cos(elevation)
    return np.array([level * math.sin(azimuth), math.sin(elevation), level * math.cos(azimuth)])

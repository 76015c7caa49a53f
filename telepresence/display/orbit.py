"""Rotation of a head state in camera space, equivalent to moving the camera around the head."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Float64, HeadState


def yaw(state: HeadState) -> float:
    """Head yaw in radians in camera space: 0 faces the camera, positive turns to the right of the image."""
    forward = rotation_matrix(state.rotation)[:, 2]
    return math.atan2(forward[0], -forward[2])


def yaw_turn(angle: float) -> Float64:
    """Rotation matrix (3, 3) in camera space that adds ``angle`` radians to the `yaw` of a state."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])


def pitch(state: HeadState) -> float:
    """Head pitch in radians: 0 faces the camera, positive looks down in the image."""
    forward = rotation_matrix(state.rotation)[:, 2]
    return math.asin(max(-1.0, min(1.0, float(forward[1]))))


def pitch_turn(angle: float) -> Float64:
    """Rotation matrix (3, 3) in camera space that adds ``angle`` radians to the `pitch` of a frontal state."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])


def turned(state: HeadState, turn: Float64) -> HeadState:
    """Return ``state`` with the head rotated by the matrix ``turn`` (3, 3) in camera space, at the same position."""
    rotation = axis_angle(turn @ rotation_matrix(state.rotation))
    return replace(state, rotation=rotation.astype(np.float32))

"""Rotation of a head state, as seen by a camera that moves around the head."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Float64, HeadState


def yaw(state: HeadState) -> float:
    """Angle in radians by which the face is turned about the vertical axis of the camera; 0 faces the camera."""
    forward = rotation_matrix(state.rotation)[:, 2]
    return math.atan2(forward[0], -forward[2])


def yaw_turn(angle: float) -> Float64:
    """Rotation (3, 3) in camera space that adds ``angle`` radians to the `yaw` of a state."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])


def pitch(state: HeadState) -> float:
    """Angle in radians by which the face looks down from the horizon of the camera; 0 faces the camera."""
    forward = rotation_matrix(state.rotation)[:, 2]
    return math.asin(max(-1.0, min(1.0, float(forward[1]))))


def pitch_turn(angle: float) -> Float64:
    """Rotation (3, 3) in camera space that adds ``angle`` radians to the `pitch` of a frontal state."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])


def turned(state: HeadState, turn: Float64) -> HeadState:
    """``state`` with its head rotated by ``turn`` (3, 3) in camera space, at the same place."""
    rotation = axis_angle(turn @ rotation_matrix(state.rotation))
    return replace(state, rotation=rotation.astype(np.float32))

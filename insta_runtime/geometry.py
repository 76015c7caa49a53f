"""Rotations as axis-angle vectors and matrices, and the transform from head space to camera space."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from insta_runtime.types import Float32, Float64, HeadState

if TYPE_CHECKING:
    import torch


def rotation_matrix(axis_angle: NDArray[np.floating]) -> Float64:
    """Rotation matrix (3, 3) of an axis-angle vector (3,) in radians, by Rodrigues' formula."""
    x, y, z = (float(value) for value in axis_angle)
    angle = math.sqrt(x * x + y * y + z * z)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < 1e-8:
        return np.eye(3) + cross
    return np.eye(3) + (math.sin(angle) / angle) * cross + ((1.0 - math.cos(angle)) / angle**2) * (cross @ cross)


def axis_angle(matrix: NDArray[np.floating]) -> Float64:
    """Axis-angle vector (3,) of a rotation matrix (3, 3), with an angle in [0, pi]; accurate near pi, too."""
    m = np.asarray(matrix, dtype=np.float64)
    trace = np.trace(m)
    # Four times the outer product of the unit quaternion with itself; the row of the largest component is accurate.
    products = np.array(
        [
            [1.0 + trace, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], 1.0 + 2.0 * m[0, 0] - trace, m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], 1.0 + 2.0 * m[1, 1] - trace, m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1.0 + 2.0 * m[2, 2] - trace],
        ]
    )
    quaternion: Float64 = products[int(np.argmax(np.diag(products)))]
    quaternion = quaternion / np.linalg.norm(quaternion)
    if quaternion[0] < 0.0:
        quaternion = -quaternion
    sine = float(np.linalg.norm(quaternion[1:]))
    if sine < 1e-12:
        return 2.0 * quaternion[1:]
    return (2.0 * math.atan2(sine, float(quaternion[0])) / sine) * quaternion[1:]


def eye_pose(gaze: Float64) -> Float32:
    """Axis-angle rotations (2, 3) of the eyes for the gaze directions ``gaze`` (2, 2), in radians, without torsion.

    Rows: left, right eye; columns of ``gaze``: yaw (to the subject's left), pitch (up).  Each is the shortest rotation
    from straight ahead (Listing's law).
    """
    yaw, pitch = gaze[:, 0], gaze[:, 1]
    direction = np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)], 1)
    axis = np.stack([-direction[:, 1], direction[:, 0], np.zeros(len(direction))], 1)  # z axis x direction
    sine = np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.arctan2(sine[:, 0], direction[:, 2])[:, None]
    return np.asarray(axis * (angle / np.maximum(sine, 1e-9)), dtype=np.float32)


def camera_vertices(vertices: torch.Tensor, state: HeadState) -> torch.Tensor:
    """Transform points (V, 3) from head space to camera space with the pose of ``state``: (V, 3), metres."""
    rotation = vertices.new_tensor(rotation_matrix(state.rotation))
    return vertices @ rotation.T + vertices.new_tensor(state.translation)

"""Rotations as axis-angle vectors and as matrices, in numpy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from insta_runtime.types import Float64


def rotation_matrix(axis_angle: NDArray[np.floating]) -> Float64:
    """The (3, 3) rotation of an axis-angle vector (3,) in radians (Rodrigues' formula)."""
    x, y, z = (float(value) for value in axis_angle)
    angle = math.sqrt(x * x + y * y + z * z)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < 1e-8:
        return np.eye(3) + cross
    return np.eye(3) + (math.sin(angle) / angle) * cross + ((1.0 - math.cos(angle)) / angle**2) * (cross @ cross)


def axis_angle(matrix: NDArray[np.floating]) -> Float64:
    """The axis-angle vector (3,) of a rotation matrix (3, 3), its angle in [0, pi]; stable near half a turn."""
    m = np.asarray(matrix, dtype=np.float64)
    trace = np.trace(m)
    # Four times the outer product of the unit quaternion; the row with the largest square is the safest.
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

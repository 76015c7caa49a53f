"""Motion of the torso in the image, and its prediction from head poses.

Positions are in *image units*: x to the right and y down, from -1 to 1 across a square image.  A `Similarity`
transforms the torso layer from its reference position to the present one.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Camera, Float64, HeadState

POSE = 6
"""Length of the vector of a head's pose in the image: x, y, logarithm of the length of a metre there (image units), and
the axis-angle rotation from a head that faces the camera (pitch, yaw, roll; radians)."""
INPUTS = 2 * POSE
"""Number of inputs of the prediction: low-pass filtered head pose, and difference of the present pose from it."""
SLOW_S = 1.5
"""Time constant in seconds of the low-pass filter of the head pose: shoulders follow head motions that last longer."""

_UNIT = np.array([0.05, 0.05, 0.05, 0.15, 0.15, 0.15] * 2)
"""Typical variation of each input, used as its unit."""
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Ridge penalties, in frames, that cross-validation compares; larger ones predict less motion."""
_NEARLY = 1.02
"""Prediction error relative to the smallest one up to which a larger ridge penalty is preferred."""
_BLOCKS = 8
"""Number of intervals of time for cross-validation."""
_MEMORY = 600
"""Number of newest frames that are used for the fit."""
_REACH = 2.5
"""Range of the prediction around the mean, in standard deviations; beyond it the torso follows the head rigidly."""
_SURE = 0.3
"""Minimum standard deviation of the inputs, in their units."""


@dataclass(frozen=True)
class Similarity:
    """Similarity transform ``p -> exp(scale) R(turn) p + (x, y)`` in image units; ``turn`` in radians, clockwise."""

    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    scale: float = 0.0

    @staticmethod
    def from_matrix(matrix: Float64) -> Similarity:
        """Similarity with the (2, 3) ``matrix``: scaled rotation, then translation as the third column."""
        a, b = float(matrix[0, 0]), float(matrix[1, 0])
        return Similarity(float(matrix[0, 2]), float(matrix[1, 2]), math.atan2(b, a), math.log(math.hypot(a, b)))

    def matrix(self) -> Float64:
        """Matrix (2, 3) of the transform, for homogeneous columns (x, y, 1)."""
        size = math.exp(self.scale)
        a, b = size * math.cos(self.turn), size * math.sin(self.turn)
        return np.array([[a, -b, self.x], [b, a, self.y]])

    def after(self, first: Similarity) -> Similarity:
        """Composition: ``first``, then this transform."""
        mine, other = self.matrix(), first.matrix()
        joined = mine[:, :2] @ other
        joined[:, 2] += mine[:, 2]
        return Similarity.from_matrix(joined)

    def inverse(self) -> Similarity:
        """Inverse of this transform."""
        mine = self.matrix()
        back = np.linalg.inv(mine[:, :2])
        return Similarity.from_matrix(np.column_stack([back, -back @ mine[:, 2]]))

    def vector(self) -> Float64:
        """Parameters (4,): x, y, turn, scale."""
        return np.array([self.x, self.y, self.turn, self.scale])

    @staticmethod
    def from_vector(vector: Float64) -> Similarity:
        """Similarity with the parameters (4,) x, y, turn, scale."""
        return Similarity(*(float(value) for value in vector))


def picture_pose(state: HeadState, camera: Camera) -> Float64:
    """Pose (`POSE`,) of the head in the image: position of the head's origin, log scale, rotation; see `POSE`."""
    x, y, z = (float(value) for value in state.translation)
    z = max(z, 0.05)
    facing = rotation_matrix(state.rotation) @ np.diag([1.0, -1.0, -1.0])
    return np.array(
        [
            2.0 * (camera.fx * x / z + camera.cx) / camera.width - 1.0,
            2.0 * (camera.fy * y / z + camera.cy) / camera.height - 1.0,
            math.log(2.0 * camera.fx / (camera.width * z)),
            *axis_angle(facing),
        ]
    )


def carried(before: Float64, after: Float64) -> Similarity:
    """Similarity transform of the image that takes the head from pose ``before`` to ``after``, (`POSE`,) each.

    It translates and scales; the rotations of the poses are ignored.
    """
    grown = float(after[2] - before[2])
    size = math.exp(grown)
    return Similarity(float(after[0] - size * before[0]), float(after[1] - size * before[1]), 0.0, grown)


def seated(pose: Float64, state: HeadState, camera: Camera) -> HeadState:
    """``state`` translated so that ``camera`` shows the head at position and scale of ``pose`` (`POSE`,)."""
    z = 2.0 * camera.fx / (camera.width * math.exp(float(pose[2])))
    x = ((float(pose[0]) + 1.0) * camera.width / 2.0 - camera.cx) * z / camera.fx
    y = ((float(pose[1]) + 1.0) * camera.height / 2.0 - camera.cy) * z / camera.fy
    return replace(state, translation=np.array([x, y, z], dtype=np.float32))


class SlowPose:
    """Low-pass filter of the head's pose with the time constant `SLOW_S`; restarts when time goes back."""

    def __init__(self) -> None:
        self._mean: Float64 | None = None
        self._before_ns = 0

    def inputs(self, pose: Float64, t_capture_ns: int) -> Float64:
        """Update the filter with the head ``pose`` (`POSE`,) at the time ``t_capture_ns``.

        Returns (`INPUTS`,): the filtered pose, and the difference of ``pose`` from it.
        """
        since = (t_capture_ns - self._before_ns) / 1e9
        if self._mean is None or since < 0.0:
            self._mean = pose
        else:
            self._mean = self._mean + (1.0 - math.exp(-since / SLOW_S)) * (pose - self._mean)
        self._before_ns = t_capture_ns
        return np.concatenate([self._mean, pose - self._mean])


@dataclass(frozen=True)
class MotionModel:
    """Linear prediction of the torso's motion from head poses.

    Attributes:
        weights: (`INPUTS` + 1, 4) regression weights; rows: inputs minus ``middle`` in units of their typical
            variation, and the constant 1; columns: x, y, turn, scale.
        middle, reach: (`INPUTS`,) centre and half width of the range of inputs in training.
    """

    weights: Float64
    middle: Float64
    reach: Float64

    def predict(self, inputs: Float64) -> Similarity:
        """Predicted motion of the torso for the ``inputs`` (`INPUTS`,) from `SlowPose`, of any driver.

        Inputs are clamped to the range seen in training; beyond it the torso follows the head rigidly.
        """
        known = np.clip(inputs, self.middle - self.reach, self.middle + self.reach)
        row = np.append((known - self.middle) / _UNIT, 1.0)
        near = Similarity.from_vector(row @ self.weights)
        return carried(known, inputs).after(near)


class MotionFit:
    """Ridge regression of torso motions on head poses over the newest frames, with cross-validated penalty."""

    def __init__(self) -> None:
        self._inputs: deque[Float64] = deque(maxlen=_MEMORY)
        self._motions: deque[Float64] = deque(maxlen=_MEMORY)

    def add(self, inputs: Float64, motion: Similarity) -> None:
        """Add one frame: its ``inputs`` from `SlowPose` and the registered motion of the torso."""
        self._inputs.append(inputs)
        self._motions.append(motion.vector())

    def solve(self) -> MotionModel:
        """Fit the regression to the newest frames added so far.  Raises ValueError before the first frame."""
        if not self._inputs:
            raise ValueError("no frames were added yet")
        inputs, motions = np.stack(self._inputs), np.stack(self._motions)
        middle, reach = inputs.mean(0), _REACH * np.maximum(inputs.std(0), _SURE * _UNIT)
        rows = np.column_stack([(inputs - middle) / _UNIT, np.ones(len(inputs))])
        return MotionModel(_ridge(rows, motions, _strength(rows, motions)), middle, reach)


def _ridge(rows: Float64, targets: Float64, strength: float) -> Float64:
    """Ridge regression weights (P, Q) from ``rows`` (N, P) to ``targets`` (N, Q); the last column is not penalised."""
    penalty = np.full(rows.shape[1], strength)
    penalty[-1] = 1e-6
    return np.linalg.solve(rows.T @ rows + np.diag(penalty), rows.T @ targets).astype(np.float64)


def _strength(rows: Float64, targets: Float64) -> float:
    """Largest penalty of `_RIDGES` whose cross-validation error over intervals of time is nearly the smallest."""
    blocks = np.array_split(np.arange(len(rows)), _BLOCKS)
    if len(rows) < 2 * _BLOCKS:
        return _RIDGES[-1]
    wrong = []
    for strength in _RIDGES:
        errors = 0.0
        for block in blocks:
            others = np.delete(np.arange(len(rows)), block)
            weights = _ridge(rows[others], targets[others], strength)
            errors += float(np.square(rows[block] @ weights - targets[block]).sum())
        wrong.append(errors)
    return max(strength for strength, error in zip(_RIDGES, wrong, strict=True) if error <= _NEARLY * min(wrong))

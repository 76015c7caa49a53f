"""How a torso moves in the picture, and how much of that the head tells.

All places are *picture units*: x to the right and y down, from -1 to 1 across a square picture.  The torso's layer is
drawn as it was in a reference picture; a `Similarity` carries it to where it is now.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Camera, Float64, HeadState

POSE = 6
"""Numbers of a head's pose in the picture: x, y, log of a metre's length, pitch, yaw, roll."""
INPUTS = 2 * POSE
"""What motion is predicted from: the slow pose, and how far the present one is from it."""
SLOW_S = 1.5
"""Time constant of the slow pose: shoulders follow what the head does for longer than this."""

_UNIT = np.array([0.05, 0.05, 0.05, 0.15, 0.15, 0.15] * 2)
"""A typical change of each input."""
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Pictures' worth of belief that shoulders stand still; the one that predicts best is taken."""
_NEARLY = 1.02
"""Error of prediction, as a multiple of the least, up to which a stronger belief is preferred."""
_BLOCKS = 8
"""Stretches of time that are predicted from the others, to find that out."""
_MEMORY = 600
"""Pictures that are remembered."""
_REACH = 2.5
"""Standard deviations around the mean within which the prediction holds; beyond, the torso goes with the head."""
_SURE = 0.3
"""Standard deviation, in units, that is granted before much was seen."""


@dataclass(frozen=True)
class Similarity:
    """``x -> exp(scale) R(turn) x + (x, y)``: picture units, radians; turns are clockwise on the screen."""

    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    scale: float = 0.0

    @staticmethod
    def from_matrix(matrix: Float64) -> Similarity:
        """From the (2, 3) matrix that `matrix` gives."""
        a, b = float(matrix[0, 0]), float(matrix[1, 0])
        return Similarity(float(matrix[0, 2]), float(matrix[1, 2]), math.atan2(b, a), math.log(math.hypot(a, b)))

    def matrix(self) -> Float64:
        """(2, 3), for columns (x, y, 1)."""
        size = math.exp(self.scale)
        a, b = size * math.cos(self.turn), size * math.sin(self.turn)
        return np.array([[a, -b, self.x], [b, a, self.y]])

    def after(self, first: Similarity) -> Similarity:
        """What is done by ``first``, then this."""
        mine, other = self.matrix(), first.matrix()
        joined = mine[:, :2] @ other
        joined[:, 2] += mine[:, 2]
        return Similarity.from_matrix(joined)

    def inverse(self) -> Similarity:
        mine = self.matrix()
        back = np.linalg.inv(mine[:, :2])
        return Similarity.from_matrix(np.column_stack([back, -back @ mine[:, 2]]))

    def vector(self) -> Float64:
        """(4,) x, y, turn, scale."""
        return np.array([self.x, self.y, self.turn, self.scale])

    @staticmethod
    def from_vector(vector: Float64) -> Similarity:
        return Similarity(*(float(value) for value in vector))


def picture_pose(state: HeadState, camera: Camera) -> Float64:
    """(`POSE`,) where the head's joint is seen, in picture units, how large, and how the head is turned (rad)."""
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
    """What moves a head's joint, and a metre there, from the pose ``before`` (`POSE` or more) to ``after``; no turn."""
    grown = float(after[2] - before[2])
    size = math.exp(grown)
    return Similarity(float(after[0] - size * before[0]), float(after[1] - size * before[1]), 0.0, grown)


def seated(pose: Float64, state: HeadState, camera: Camera) -> HeadState:
    """``state`` where ``camera`` sees it as large, and at the place, that ``pose`` (`POSE`,) says."""
    z = 2.0 * camera.fx / (camera.width * math.exp(float(pose[2])))
    x = ((float(pose[0]) + 1.0) * camera.width / 2.0 - camera.cx) * z / camera.fx
    y = ((float(pose[1]) + 1.0) * camera.height / 2.0 - camera.cy) * z / camera.fy
    return replace(state, translation=np.array([x, y, z], dtype=np.float32))


class SlowPose:
    """The mean of a head's pose over the last second or two; starts anew when time goes back."""

    def __init__(self) -> None:
        self._mean: Float64 | None = None
        self._before_ns = 0

    def inputs(self, pose: Float64, t_capture_ns: int) -> Float64:
        """Take in a ``pose`` (`POSE`,) and return (`INPUTS`,): the slow pose, and the present one's way from it."""
        since = (t_capture_ns - self._before_ns) / 1e9
        if self._mean is None or since < 0.0:
            self._mean = pose
        else:
            self._mean = self._mean + (1.0 - math.exp(-since / SLOW_S)) * (pose - self._mean)
        self._before_ns = t_capture_ns
        return np.concatenate([self._mean, pose - self._mean])


@dataclass(frozen=True)
class MotionModel:
    """Predicts the torso's motion.

    Attributes:
        weights: (`INPUTS` + 1, 4) from inputs in units, less their middle, and 1, to x, y, turn, scale.
        middle, reach: (`INPUTS`,) the range of inputs that was seen.
    """

    weights: Float64
    middle: Float64
    reach: Float64

    def predict(self, inputs: Float64) -> Similarity:
        """The motion for ``inputs`` of `SlowPose`, of any driver.

        What lies beyond the range that was seen is no statement about this person's shoulders: a head that appears
        elsewhere, or in another size, takes them along.
        """
        known = np.clip(inputs, self.middle - self.reach, self.middle + self.reach)
        row = np.append((known - self.middle) / _UNIT, 1.0)
        near = Similarity.from_vector(row @ self.weights)
        return carried(known, inputs).after(near)


class MotionFit:
    """Ridge regression of motions on inputs, over the pictures that were seen last."""

    def __init__(self) -> None:
        self._inputs: deque[Float64] = deque(maxlen=_MEMORY)
        self._motions: deque[Float64] = deque(maxlen=_MEMORY)

    def add(self, inputs: Float64, motion: Similarity) -> None:
        """One picture: its ``inputs`` of `SlowPose`, and how the torso was found to have moved."""
        self._inputs.append(inputs)
        self._motions.append(motion.vector())

    def solve(self) -> MotionModel:
        """The model so far.  ValueError before the first picture."""
        if not self._inputs:
            raise ValueError("nothing was seen yet")
        inputs, motions = np.stack(self._inputs), np.stack(self._motions)
        middle, reach = inputs.mean(0), _REACH * np.maximum(inputs.std(0), _SURE * _UNIT)
        rows = np.column_stack([(inputs - middle) / _UNIT, np.ones(len(inputs))])
        return MotionModel(_ridge(rows, motions, _strength(rows, motions)), middle, reach)


def _ridge(rows: Float64, targets: Float64, strength: float) -> Float64:
    """(P, Q) the weights that carry ``rows`` (N, P) to ``targets`` (N, Q); that of the last column is free."""
    penalty = np.full(rows.shape[1], strength)
    penalty[-1] = 1e-6
    return np.linalg.solve(rows.T @ rows + np.diag(penalty), rows.T @ targets).astype(np.float64)


def _strength(rows: Float64, targets: Float64) -> float:
    """The largest of `_RIDGES` with which each stretch of time is predicted nearly best from all others."""
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

"""Faces received from other programs as ARKit blend shape weights, and their conversion to head states.

Messages of Live Link Face, VMC and OpenSeeFace are first converted to an `ArkitFace`: weights by ARKit name, head
rotation, and gaze.  The neutral face and the range of the weights are those of the sender;
`expression_transfer` maps them to the avatar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.geometry import axis_angle, eye_pose
from insta_runtime.types import Float32, Float64, HeadState

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel

GAZE_RAD: Final = 0.61
"""Rotation of an eye in radians at an eyeLook weight of 1, measured on packets of Live Link Face."""
JAW_RAD: Final = 0.35
"""Opening of FLAME's jaw joint, in radians, at a jawOpen weight of 1."""
GAZE_LIMIT: Final = 0.75
"""Largest yaw or pitch of an eye, in radians; larger values are clamped."""
AHEAD: Final = np.diag([1.0, -1.0, -1.0])
"""Rotation matrix (3, 3) from head to camera space of a face that looks into the camera."""
PLACE: Final = np.array([0.0, 0.0, 0.6])
"""Position (3,) in camera space, in metres, of the origin of a sender's head positions."""
WEIGHT_LIMIT: Final = 100.0
"""Largest magnitude of a received weight, which is clamped to its range; larger numbers are invalid."""
ANGLE_LIMIT: Final = 100.0
"""Largest magnitude of a received angle in radians; larger numbers are invalid."""


@dataclass(frozen=True)
class ArkitFace:
    """A face received in one packet.

    Attributes:
        weights: blend shape weights by ARKit name, such as ``jawOpen``; nominally in [0, 1], clamped on conversion.
        turn: (3, 3) head rotation in head axes, relative to a face that looks into the camera; None if not sent.
        place: (3,) head position in camera axes, in metres, relative to the sender's origin; None if not sent.
        gaze: (2, 2) gaze angles in radians; rows: left, right eye; columns: yaw (to the subject's left), pitch (up).
            None: given by the eyeLook weights.
        sent_s: time on the sender's clock in seconds; None if not sent.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    turn: Float64 | None = None
    place: Float64 | None = None
    gaze: Float64 | None = None
    sent_s: float | None = None


def face_to_head_state(face: ArkitFace, head: HeadModel) -> HeadState:
    """Convert ``face`` to a head state of ``head``; without a position it is placed on the axis of the camera.

    The open head model has ARKit's blend shapes.  FLAME's expression components have no names: for that model only
    jaw, eyelids, gaze and head pose are converted.
    """
    weights = {name: min(max(weight, 0.0), 1.0) for name, weight in face.weights.items()}
    state = HeadState.neutral(len(head.expression_names))
    parts: dict[str, Float32] = state.arrays()
    gaze = face.gaze if face.gaze is not None else gaze_from_units(weights)
    parts["eye_pose"] = eye_pose(gaze.clip(-GAZE_LIMIT, GAZE_LIMIT))
    if head.basis == "arkit52":
        values = [weights.get(name, 0.0) for name in head.expression_names]
        parts["expression"] = np.array(values, dtype=np.float32)
    else:
        aside = weights.get("jawLeft", 0.0) - weights.get("jawRight", 0.0)
        jaw = [JAW_RAD * weights.get("jawOpen", 0.0), 0.15 * aside, 0.0]
        parts["jaw_pose"] = np.array(jaw, dtype=np.float32)
        lids = [weights.get("eyeBlinkLeft", 0.0), weights.get("eyeBlinkRight", 0.0)]
        parts["eyelids"] = np.array(lids, dtype=np.float32)
    if face.turn is not None:
        parts["rotation"] = axis_angle(AHEAD @ face.turn).astype(np.float32)
    if face.place is not None:
        parts["translation"] = (PLACE + face.place).astype(np.float32)
    return HeadState(**parts, t_capture_ns=0)


def is_number(value: object, limit: float) -> bool:
    """Whether ``value`` is a finite number of at most the magnitude ``limit``."""
    return isinstance(value, float | int) and math.isfinite(value) and abs(value) <= limit


def gaze_from_units(weights: Mapping[str, float]) -> Float64:
    """Gaze angles (2, 2) in radians from the eyeLook weights.

    Rows: left, right eye; columns: yaw (to the subject's left), pitch (up).
    """

    def look(one: str, other: str) -> float:
        return GAZE_RAD * (weights.get(f"eyeLook{one}", 0.0) - weights.get(f"eyeLook{other}", 0.0))

    return np.array(
        [
            [look("OutLeft", "InLeft"), look("UpLeft", "DownLeft")],
            [look("InRight", "OutRight"), look("UpRight", "DownRight")],
        ]
    )


def gaze_from_directions(directions: Float64) -> Float64:
    """Gaze angles (2, 2) in radians of two unit direction vectors (2, 3) in head axes.

    Rows: left, right eye, as in ``directions``; columns: yaw (to the subject's left), pitch (up).
    """
    yaw = np.arctan2(directions[:, 0], directions[:, 2])
    return np.stack([yaw, np.arcsin(directions[:, 1].clip(-1.0, 1.0))], axis=1)


def units_from_gaze(gaze: Float64) -> dict[str, float]:
    """The eight eyeLook weights, in [0, 1], of gaze angles (2, 2) in radians; inverse of `gaze_from_units`."""
    weights: dict[str, float] = {}
    for side, (yaw, pitch), outward in zip(("Left", "Right"), gaze, (1.0, -1.0), strict=True):
        for name, angle in (("Out", outward * yaw), ("In", -outward * yaw), ("Up", pitch), ("Down", -pitch)):
            weights[f"eyeLook{name}{side}"] = float(min(max(angle / GAZE_RAD, 0.0), 1.0))
    return weights


def head_rotation(yaw: float, pitch: float, roll: float) -> Float64:
    """Head rotation matrix (3, 3) in head axes from three angles in radians.

    Yaw is to the subject's left, pitch is up, roll raises the subject's left side: ``Rz(roll) Ry(yaw) Rx(-pitch)``.
    """
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(-pitch), np.sin(-pitch), np.cos(roll), np.sin(roll)
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cp, -sp], [0.0, sp, cp]])
    about_y = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
    about_z = np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(about_z @ about_y @ about_x, dtype=np.float64)


def quaternion_matrix(x: float, y: float, z: float, w: float) -> Float64 | None:
    """Rotation matrix (3, 3) of a quaternion, which is normalised; None if its length is not between 0.1 and 10."""
    quaternion = np.array([x, y, z, w], dtype=np.float64)
    length = float(np.linalg.norm(quaternion))
    if not 0.1 < length < 10.0:
        return None
    x, y, z, w = (float(number) for number in quaternion / length)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )

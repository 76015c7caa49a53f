"""A face as other programs tell of it, in ARKit's words, and the head state that it makes of ours.

What Live Link Face, VMC and OpenSeeFace send is brought here first: weights by ARKit's names, the head's turn, where
the eyes look.  Neutral and range are the sender's own; `transfer` makes them the avatar's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.geometry import axis_angle
from insta_runtime.types import Float32, Float64, HeadState

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel

GAZE_RAD: Final = 0.61
"""How far an eye turns at a weight of one of ARKit's eyeLook units: measured on what Live Link Face sends of both."""
JAW_RAD: Final = 0.35
"""How far FLAME's jaw is open where ARKit's jawOpen is one."""
GAZE_LIMIT: Final = 0.75
"""No eye is taken to turn further (radians)."""
AHEAD: Final = np.diag([1.0, -1.0, -1.0])
"""Head to camera of a face that looks into the camera."""
PLACE: Final = np.array([0.0, 0.0, 0.6])
"""Where a head is (metres, in the camera's axes) whose sender does not say."""


@dataclass(frozen=True)
class Face:
    """What one packet says of a face.

    Attributes:
        weights: ARKit's units by name (`HeadModel.expression_names` of the open head), in [0, 1].
        turn: (3, 3) rotation from a face that looks into the camera, in head axes; None: not said.
        place: (3,) metres from wherever the sender counts, in camera axes; None: not said.
        gaze: (2, 2) rad, yaw to the subject's left and pitch up of the left, right eye; None: as the eyeLook units say.
        sent_s: the sender's clock (seconds); None: not said.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    turn: Float64 | None = None
    place: Float64 | None = None
    gaze: Float64 | None = None
    sent_s: float | None = None


def head_state(face: Face, head: HeadModel) -> HeadState:
    """The state of ``head`` that shows ``face``, before a camera in the middle of the picture.

    The open head has ARKit's units.  FLAME's expressions have no names: jaw, lids, gaze and head move, the rest stays
    neutral.
    """
    weights = {name: min(max(weight, 0.0), 1.0) for name, weight in face.weights.items()}
    state = HeadState.neutral(len(head.expression_names))
    parts: dict[str, Float32] = state.arrays()
    gaze = face.gaze if face.gaze is not None else gaze_of(weights)
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


def gaze_of(weights: Mapping[str, float]) -> Float64:
    """(2, 2) yaw and pitch of both eyes that the eyeLook units speak of."""

    def look(one: str, other: str) -> float:
        return GAZE_RAD * (weights.get(f"eyeLook{one}", 0.0) - weights.get(f"eyeLook{other}", 0.0))

    return np.array(
        [
            [look("OutLeft", "InLeft"), look("UpLeft", "DownLeft")],
            [look("InRight", "OutRight"), look("UpRight", "DownRight")],
        ]
    )


def looks(gaze: Float64) -> dict[str, float]:
    """The eyeLook units of a (2, 2) gaze: what a sender that only knows where the eyes look does not say."""
    weights: dict[str, float] = {}
    for side, (yaw, pitch), outward in zip(("Left", "Right"), gaze, (1.0, -1.0), strict=True):
        for name, angle in (("Out", outward * yaw), ("In", -outward * yaw), ("Up", pitch), ("Down", -pitch)):
            weights[f"eyeLook{name}{side}"] = float(min(max(angle / GAZE_RAD, 0.0), 1.0))
    return weights


def eye_pose(gaze: Float64) -> Float32:
    """(2, 2) yaw and pitch to (2, 3) axis-angle, the shortest turn from straight ahead (Listing's law)."""
    yaw, pitch = gaze[:, 0], gaze[:, 1]
    look = np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)], axis=1)
    axis = np.stack([-look[:, 1], look[:, 0], np.zeros(len(look))], axis=1)
    sine = np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.arctan2(sine[:, 0], look[:, 2])[:, None]
    return np.asarray(axis * (angle / np.maximum(sine, 1e-9)), dtype=np.float32)


def turned(yaw: float, pitch: float, roll: float) -> Float64:
    """(3, 3) turn of a head by angles in radians, in head axes.

    Yaw is to the subject's left, pitch up, roll lifts the subject's left side: ``Rz(roll) Ry(yaw) Rx(-pitch)``.
    """
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(-pitch), np.sin(-pitch), np.cos(roll), np.sin(roll)
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cp, -sp], [0.0, sp, cp]])
    about_y = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
    about_z = np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(about_z @ about_y @ about_x, dtype=np.float64)


def matrix_of(x: float, y: float, z: float, w: float) -> Float64 | None:
    """(3, 3) rotation of a quaternion, brought to unit length; None if it has hardly any."""
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

"""Parser of OpenSeeFace packets: faces sent by its facetracker over UDP, usually to port 11573.

A packet is a sequence of records of 1785 bytes, little-endian (docs/protocols-drivers.md).  Only the face with the
lowest number is used.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Float32, Float64
from telepresence.drivers.arkit import (
    WEIGHT_LIMIT,
    ArkitFace,
    gaze_from_directions,
    is_number,
    quaternion_matrix,
    units_from_gaze,
)

NAME: Final = "openseeface"
"""Name of this driver in `/status` and in settings."""
PORT: Final = 11573
"""Default UDP port."""
POINTS: Final = 68
"""Number of 2D landmarks in a record; its 3D points have two more for the eyes."""
FEATURES: Final = (
    *("eye_l", "eye_r", "eyebrow_steepness_l", "eyebrow_updown_l", "eyebrow_quirk_l"),
    *("eyebrow_steepness_r", "eyebrow_updown_r", "eyebrow_quirk_r", "mouth_corner_updown_l", "mouth_corner_inout_l"),
    *("mouth_corner_updown_r", "mouth_corner_inout_r", "mouth_open", "mouth_wide"),
)
"""Names of the expression features in a record, in the order of the record."""
USED: Final = (
    *("eye_l", "eye_r", "eyebrow_updown_l", "eyebrow_updown_r", "mouth_corner_updown_l", "mouth_corner_updown_r"),
    *("mouth_open", "mouth_wide"),
)
"""Names of the features that are converted to ARKit weights; the others are ignored."""
FACES: Final = 40
"""Maximum number of faces in a packet; the tracker sends at most 39."""

_HEAD: Final = struct.Struct("<diff2fBf4f3f3f")
_REST: Final = POINTS + 2 * POINTS  # confidences and points in the image, not used
RECORD: Final = _HEAD.size + 4 * (_REST + 3 * (POINTS + 2) + len(FEATURES))
"""Size of a record, in bytes."""

UNIT_M: Final = 0.16
"""Length in metres of one unit of OpenSeeFace's face model, whose jaw is 0.91 units wide."""
NOSE: Final = np.array([0.0, 0.0, 0.12])
"""Position (3,) of the tip of the nose, the origin of OpenSeeFace's face model, in head space, in metres."""
UNFIT: Final = 300.0
"""Fit error above which OpenSeeFace documents a fit as wrong; such faces are dropped."""

# Its camera has rows before columns, and its model has x to the subject's right, so the rotation is between two
# reflections.  Its images are mirrored as well, which puts the fitted head behind the camera: row, column and depth are
# negative.
_ROWS_FIRST: Final = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_RIGHT: Final = np.diag([-1.0, 1.0, 1.0])
_TO_AHEAD: Final = np.diag([1.0, -1.0, -1.0])


class OpenSeeFaceReader:
    """Parser of OpenSeeFace packets; the previous packet's value replaces an invalid one.

    Attributes:
        left_out: one message for each invalid part of the last packet.
    """

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._turn: Float64 | None = None
        self._shift: Float64 | None = None  # down, right, far, in units of its face model
        self._gaze: Float64 = np.zeros((2, 2))
        self._features: dict[str, float] = dict.fromkeys(USED, 0.0)
        self._open = [1.0, 1.0]  # right, left

    def read(self, packet: bytes) -> ArkitFace | None:
        """Parse ``packet``; None if OpenSeeFace could not fit the face.

        Raises:
            UserError: the size of the packet is invalid, or all parts that are used are invalid.
        """
        self.left_out = []
        count, rest = divmod(len(packet), RECORD)
        if rest or not 0 < count <= FACES:
            raise UserError(f"malformed packet: {len(packet)} bytes, expected records of {RECORD} bytes")
        starts = [RECORD * index for index in range(count)]
        start = min(starts, key=lambda start: int(_HEAD.unpack_from(packet, start)[1]))
        head = _HEAD.unpack_from(packet, start)
        numbers = np.frombuffer(packet, "<f4", offset=start + _HEAD.size, count=(RECORD - _HEAD.size) // 4)
        fitted, error = head[6], head[7]
        if not fitted or error > UNFIT:
            return None
        bad = [*self._read_head(head), *self._read_face(head[4:6], numbers)]
        if len(bad) == 2 + len(USED) + 3:
            raise UserError("malformed packet: no number is finite")
        if not math.isfinite(head[0]):
            bad.append("the time")
        if math.isnan(error):
            bad.append("the error of the fit")
        self.left_out = [f"malformed packet: {name} is not a number in its range" for name in bad]
        weights = _weights(self._features, *self._open) | units_from_gaze(self._gaze)
        place = None
        if self._turn is not None and self._shift is not None:
            down, right, far = self._shift
            place = -UNIT_M * np.array([right, down, far]) - _TO_AHEAD @ self._turn @ NOSE
        return ArkitFace(weights, self._turn, place, self._gaze, float(head[0]) if math.isfinite(head[0]) else None)

    def _read_head(self, head: tuple[float, ...]) -> list[str]:
        """Read rotation and position of the head; returns the names of what is invalid."""
        bad = []
        # The tracker sends the quaternion of the transposed matrix.
        numeric = all(is_number(value, 10.0) for value in head[8:12])
        turn = quaternion_matrix(-head[8], -head[9], -head[10], head[11]) if numeric else None
        if turn is not None:
            self._turn = _TO_AHEAD @ _ROWS_FIRST @ turn @ _RIGHT
        else:
            bad.append("the head's rotation")
        if np.isfinite(head[15:18]).all():
            self._shift = np.clip(np.array(head[15:18], dtype=np.float64), -100.0, 100.0)
        else:
            bad.append("the head's position")
        return bad

    def _read_face(self, openness: tuple[float, ...], numbers: Float32) -> list[str]:
        """Read eyelids, gaze and features; returns the names of what is invalid."""
        bad = []
        for side, (name, value) in enumerate(zip(("right", "left"), openness, strict=True)):
            if is_number(value, WEIGHT_LIMIT):
                self._open[side] = value
            else:
                bad.append(f"the openness of the {name} eye")
        points = numbers[_REST : _REST + 3 * (POINTS + 2)].reshape(-1, 3).astype(np.float64)
        if np.isfinite(points[66:70]).all():
            self._gaze = _gaze(points)
        else:
            bad.append("the gaze")
        features = dict(zip(FEATURES, numbers[-len(FEATURES) :].tolist(), strict=True))
        for name in USED:
            if is_number(features[name], WEIGHT_LIMIT):
                self._features[name] = features[name]
            else:
                bad.append(name)
        return bad


def _gaze(points: Float64) -> Float64:
    """Gaze (2, 2) of the left and right eye, in radians: direction from the eyeball's centre to the pupil."""
    direction = np.stack([points[67] - points[69], points[66] - points[68]]) * [-1.0, -1.0, -1.0]
    length = np.linalg.norm(direction, axis=1, keepdims=True)
    direction = np.where(length > 1e-6, direction / np.maximum(length, 1e-6), [0.0, 0.0, 1.0])
    return gaze_from_directions(direction)


def _weights(features: dict[str, float], right_open: float, left_open: float) -> dict[str, float]:
    """ARKit's units from the tracker's features, which range from -1 to 1 around the face's median."""
    weights = {"eyeBlinkLeft": 1.0 - left_open, "eyeBlinkRight": 1.0 - right_open, "jawOpen": features["mouth_open"]}
    brows = 0.0
    for side, suffix in (("Left", "_l"), ("Right", "_r")):
        brow, corner = features[f"eyebrow_updown{suffix}"], features[f"mouth_corner_updown{suffix}"]
        brows += 0.5 * brow
        weights[f"browOuterUp{side}"] = brow
        weights[f"browDown{side}"] = -brow
        weights[f"eyeWide{side}"] = features[f"eye{suffix}"]
        weights[f"mouthSmile{side}"] = -corner  # the feature is the distance of the corner below the upper lip
        weights[f"mouthFrown{side}"] = corner
        weights[f"mouthStretch{side}"] = 0.5 * features["mouth_wide"]
    weights["browInnerUp"] = brows
    weights["mouthPucker"] = -features["mouth_wide"]
    return {name: min(max(weight, 0.0), 1.0) for name, weight in weights.items()}

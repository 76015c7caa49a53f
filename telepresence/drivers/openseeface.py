"""Parser of OpenSeeFace packets: faces sent by its facetracker over UDP, usually to port 11573.

A packet is a sequence of records of 1785 bytes, little-endian (docs/protocols-drivers.md).  Only the face with the
lowest number is used.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Float64
from telepresence.drivers.arkit import ArkitFace, gaze_from_directions, quaternion_matrix, units_from_gaze

NAME: Final = "openseeface"
"""Name of this driver."""
PORT: Final = 11573
"""Default UDP port."""
POINTS: Final = 68
"""Number of landmarks in a record, without the eyes."""
FEATURES: Final = (
    *("eye_l", "eye_r", "eyebrow_steepness_l", "eyebrow_updown_l", "eyebrow_quirk_l"),
    *("eyebrow_steepness_r", "eyebrow_updown_r", "eyebrow_quirk_r", "mouth_corner_updown_l", "mouth_corner_inout_l"),
    *("mouth_corner_updown_r", "mouth_corner_inout_r", "mouth_open", "mouth_wide"),
)
"""Names of the features in a record, in its order."""
FACES: Final = 40
"""Maximum number of faces in a packet; the tracker sends at most 39."""

_HEAD: Final = struct.Struct("<diff2fBf4f3f3f")
_REST: Final = POINTS + 2 * POINTS  # confidences and points in the image, not used
RECORD: Final = _HEAD.size + 4 * (_REST + 3 * (POINTS + 2) + len(FEATURES))
"""Size of a record, in bytes."""

UNIT_M: Final = 0.16
"""Length of one unit of its face model in metres: half the width of its jaw is 0.455 units."""
NOSE: Final = np.array([0.0, 0.0, 0.12])
"""Position of the tip of the nose, the origin of its face model, in a head of ours (metres)."""
UNFIT: Final = 300.0
"""Fit error above which the tracker documents a fit to be wrong."""

# Its camera has rows before columns, and its model has x to the subject's right, so the rotation is between two
# reflections.  Its images are mirrored as well, which puts the fitted head behind the camera: row, column and depth are
# negative.
_ROWS_FIRST: Final = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_RIGHT: Final = np.diag([-1.0, 1.0, 1.0])
_TO_AHEAD: Final = np.diag([1.0, -1.0, -1.0])


class OpenSeeFaceReader:
    """Parses OpenSeeFace packets; it keeps no state between packets."""

    def read(self, packet: bytes) -> ArkitFace | None:
        """Parse ``packet``; None if the tracker could not fit the face.

        Raises:
            UserError: the packet is not valid.
        """
        count, rest = divmod(len(packet), RECORD)
        if rest or not 0 < count <= FACES:
            raise UserError(f"malformed packet: {len(packet)} bytes, expected records of {RECORD} bytes")
        starts = [RECORD * index for index in range(count)]
        start = min(starts, key=lambda start: int(_HEAD.unpack_from(packet, start)[1]))
        head = _HEAD.unpack_from(packet, start)
        numbers = np.frombuffer(packet, "<f4", offset=start + _HEAD.size, count=(RECORD - _HEAD.size) // 4)
        if not (np.isfinite(numbers).all() and np.isfinite(head).all()):
            raise UserError("malformed packet: a number is not finite")
        sent_s, fitted, error = float(head[0]), head[6], head[7]
        if not fitted or error > UNFIT:
            return None
        # The tracker sends the quaternion of the transposed matrix.
        turn = quaternion_matrix(-head[8], -head[9], -head[10], head[11])
        if turn is None:
            raise UserError("malformed packet: the head's quaternion is not a rotation")
        turn = _TO_AHEAD @ _ROWS_FIRST @ turn @ _RIGHT
        down, right, far = (min(max(value, -100.0), 100.0) for value in head[15:18])
        points = numbers[_REST : _REST + 3 * (POINTS + 2)].reshape(-1, 3).astype(np.float64)
        gaze = _gaze(points)
        features = dict(zip(FEATURES, numbers[-len(FEATURES) :].tolist(), strict=True))
        weights = _weights(features, right_open=head[4], left_open=head[5]) | units_from_gaze(gaze)
        place = -UNIT_M * np.array([right, down, far]) - _TO_AHEAD @ turn @ NOSE
        return ArkitFace(weights, turn, place, gaze, sent_s)


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

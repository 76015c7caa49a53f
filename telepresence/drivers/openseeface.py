"""OpenSeeFace: what its facetracker sends of each face over UDP, usually to port 11573.

A packet is a row of records of 1785 bytes, little-endian (docs/protocols-drivers.md).  Only the face with the lowest
number counts.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Float64
from telepresence.drivers.arkit import Face, looks, matrix_of

NAME: Final = "openseeface"
PORT: Final = 11573
POINTS: Final = 68
FEATURES: Final = (
    *("eye_l", "eye_r", "eyebrow_steepness_l", "eyebrow_updown_l", "eyebrow_quirk_l"),
    *("eyebrow_steepness_r", "eyebrow_updown_r", "eyebrow_quirk_r", "mouth_corner_updown_l", "mouth_corner_inout_l"),
    *("mouth_corner_updown_r", "mouth_corner_inout_r", "mouth_open", "mouth_wide"),
)
FACES: Final = 40
"""Faces of one packet at most: the tracker sends no more than 39."""

_HEAD: Final = struct.Struct("<diff2fBf4f3f3f")
_REST: Final = POINTS + 2 * POINTS  # confidences and points in the picture, which are not needed
RECORD: Final = _HEAD.size + 4 * (_REST + 3 * (POINTS + 2) + len(FEATURES))

UNIT_M: Final = 0.16
"""One unit of its face model in metres: half the width of its jaw is 0.455."""
NOSE: Final = np.array([0.0, 0.0, 0.12])
"""Where the nose's tip, from which it counts, is in a head of ours (metres)."""
UNFIT: Final = 300.0
"""Fitting errors beyond this are anomalies, says the tracker itself."""

# Its camera has rows before columns, and its model x to the subject's right: two mirrors around a rotation.  That its
# pictures are mirrored, too, leads its fit to a head behind the camera: rows, columns and distance come out negative.
_ROWS_FIRST: Final = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_RIGHT: Final = np.diag([-1.0, 1.0, 1.0])
_TO_AHEAD: Final = np.diag([1.0, -1.0, -1.0])


class OpenSeeFace:
    """Reads packets; a bridge keeps one for as long as it listens."""

    def read(self, packet: bytes) -> Face | None:
        """The face of ``packet``, or None if it could not be fitted.

        Raises:
            UserError: it is not such a packet.
        """
        count, rest = divmod(len(packet), RECORD)
        if rest or not 0 < count <= FACES:
            raise UserError(f"malformed packet: {len(packet)} bytes, records of OpenSeeFace have {RECORD}")
        starts = [RECORD * index for index in range(count)]
        start = min(starts, key=lambda start: int(_HEAD.unpack_from(packet, start)[1]))
        head = _HEAD.unpack_from(packet, start)
        numbers = np.frombuffer(packet, "<f4", offset=start + _HEAD.size, count=(RECORD - _HEAD.size) // 4)
        if not (np.isfinite(numbers).all() and np.isfinite(head).all()):
            raise UserError("malformed packet: a number is not finite")
        sent_s, fitted, error = float(head[0]), head[6], head[7]
        if not fitted or error > UNFIT:
            return None
        # The tracker's quaternion is that of the transposed matrix.
        turn = matrix_of(-head[8], -head[9], -head[10], head[11])
        if turn is None:
            raise UserError("malformed packet: the head is turned by what is no rotation")
        turn = _TO_AHEAD @ _ROWS_FIRST @ turn @ _RIGHT
        down, right, far = (min(max(value, -100.0), 100.0) for value in head[15:18])
        points = numbers[_REST : _REST + 3 * (POINTS + 2)].reshape(-1, 3).astype(np.float64)
        gaze = _gaze(points)
        features = dict(zip(FEATURES, numbers[-len(FEATURES) :].tolist(), strict=True))
        weights = _weights(features, right_open=head[4], left_open=head[5]) | looks(gaze)
        place = -UNIT_M * np.array([right, down, far]) - _TO_AHEAD @ turn @ NOSE
        return Face(weights, turn, place, gaze, sent_s)


def _gaze(points: Float64) -> Float64:
    """(2, 2) where the left, right eye looks: from the middle of an eyeball to its pupil."""
    look = np.stack([points[67] - points[69], points[66] - points[68]]) * [-1.0, -1.0, -1.0]
    length = np.linalg.norm(look, axis=1, keepdims=True)
    look = np.where(length > 1e-6, look / np.maximum(length, 1e-6), [0.0, 0.0, 1.0])
    return np.stack([np.arctan2(look[:, 0], look[:, 2]), np.arcsin(look[:, 1].clip(-1.0, 1.0))], axis=1)


def _weights(features: dict[str, float], right_open: float, left_open: float) -> dict[str, float]:
    """ARKit's units, of what the tracker tells: from -1 to 1 around a median face, each in parts of its own range."""
    weights = {"eyeBlinkLeft": 1.0 - left_open, "eyeBlinkRight": 1.0 - right_open, "jawOpen": features["mouth_open"]}
    brows = 0.0
    for side, suffix in (("Left", "_l"), ("Right", "_r")):
        brow, corner = features[f"eyebrow_updown{suffix}"], features[f"mouth_corner_updown{suffix}"]
        brows += 0.5 * brow
        weights[f"browOuterUp{side}"] = brow
        weights[f"browDown{side}"] = -brow
        weights[f"eyeWide{side}"] = features[f"eye{suffix}"]
        weights[f"mouthSmile{side}"] = -corner  # it counts how far a corner lies below the upper lip
        weights[f"mouthFrown{side}"] = corner
        weights[f"mouthStretch{side}"] = 0.5 * features["mouth_wide"]
    weights["browInnerUp"] = brows
    weights["mouthPucker"] = -features["mouth_wide"]
    return {name: min(max(weight, 0.0), 1.0) for name, weight in weights.items()}

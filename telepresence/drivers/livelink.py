"""Parser of Live Link Face packets: ARKit weights sent by Epic's phone app over UDP, usually to port 11111.

The layout, all numbers big-endian (docs/protocols-drivers.md): version 6 as a byte; device and subject, each as a
length and as many bytes; the time as frame, fraction of a frame and rate; a count of 61; and 61 floats.  While no face
is found, the packet ends before the count.
"""

from __future__ import annotations

import math
import struct
from typing import Final

from insta_runtime.errors import UserError
from insta_runtime.types import Float64
from telepresence.drivers.arkit import ANGLE_LIMIT, WEIGHT_LIMIT, ArkitFace, head_rotation, is_number

NAME: Final = "livelink"
"""Name of this driver in `/status` and in settings."""
PORT: Final = 11111
"""Default UDP port."""
VERSION: Final = 6
"""Version of the packet layout."""
MAX_NAME: Final = 256
"""Maximum length of a device's or subject's name, in bytes."""

CURVES: Final = (
    *("eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft"),
    *("eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight"),
    *("eyeSquintRight", "eyeWideRight", "jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel"),
    *("mouthPucker", "mouthLeft", "mouthRight", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft"),
    *("mouthFrownRight", "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight"),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight"),
    *("mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft"),
    *("browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft"),
    *("cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut"),
)
"""Names of ARKit's 52 blend shapes in the order of the packet; three angles of the head and of each eye follow."""
FLOATS: Final = len(CURVES) + 9
"""Number of floats in a packet: the blend shapes, and three angles of the head and of each eye."""

_TIME: Final = struct.Struct("!ifii")
_VALUES: Final = struct.Struct(f"!{FLOATS}f")


class LiveLinkReader:
    """Parser of Live Link Face packets; the previous packet's value replaces an invalid one.

    Attributes:
        left_out: one message for each invalid value of the last packet.
    """

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._weights: dict[str, float] = {}
        self._turn: Float64 | None = None

    def read(self, packet: bytes) -> ArkitFace | None:
        """Parse ``packet``; None if the phone detects no face.

        Raises:
            UserError: the packet is malformed, or all of its values are invalid.
        """
        self.left_out = []
        if not packet or packet[0] != VERSION:
            raise UserError(f"malformed packet: expected version {VERSION} of Live Link Face")
        device_end = _skip_name(packet, 1)
        end = _skip_name(packet, device_end)
        if len(packet) - end < _TIME.size:
            raise UserError(f"malformed packet: {len(packet)} bytes, truncated in its time")
        frame, part, rate, base = _TIME.unpack_from(packet, end)
        end += _TIME.size
        if len(packet) == end or packet[end] == 0:
            return None
        if packet[end] != FLOATS or len(packet) - end - 1 != _VALUES.size:
            raise UserError(
                f"malformed packet: {packet[end]} values in {len(packet) - end - 1} bytes, expected {FLOATS} values"
            )
        values = _VALUES.unpack_from(packet, end + 1)
        valid = {name: value for name, value in zip(CURVES, values, strict=False) if is_number(value, WEIGHT_LIMIT)}
        bad = [name for name in CURVES if name not in valid]
        angles = values[52:55]
        if all(is_number(angle, ANGLE_LIMIT) for angle in angles):
            yaw, pitch, roll = (min(max(angle, -math.pi), math.pi) for angle in angles)
            self._turn = head_rotation(yaw, pitch, roll)
        else:
            bad.append("the head's rotation")
        if len(bad) > len(CURVES):
            raise UserError("malformed packet: no value is a finite number")
        if not math.isfinite(part):
            bad.append("the time")
        self._weights |= valid
        self.left_out = [f"malformed packet: {name} is not a number in its range" for name in bad]
        known = 0 < rate <= 1000 and 0 < base <= 1001 and math.isfinite(part)
        return ArkitFace(dict(self._weights), self._turn, sent_s=(frame + part) * base / rate if known else None)


def _skip_name(packet: bytes, start: int) -> int:
    """Offset after the length-prefixed text at ``start``."""
    if len(packet) - start < 4:
        raise UserError(f"malformed packet: {len(packet)} bytes, truncated in its names")
    length = int.from_bytes(packet[start : start + 4], "big")
    if length > MAX_NAME or start + 4 + length > len(packet):
        raise UserError(f"malformed packet: a name of {length} bytes, expected at most {MAX_NAME}")
    return start + 4 + length

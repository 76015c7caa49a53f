"""Parser of the Virtual Motion Capture protocol (VMC): faces and bones as OSC over UDP, usually to port 39539.

It is sent by VSeeFace, Warudo, Waidayo and many other programs.  These messages move a face
(docs/protocols-drivers.md): blend shapes, which take effect with ``/VMC/Ext/Blend/Apply``; the bones from hips to eyes;
and the tracking status.  A packet usually holds one frame; frames that are split over packets are supported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.geometry import axis_angle
from insta_runtime.types import Float64
from telepresence.drivers import osc
from telepresence.drivers.arkit import (
    WEIGHT_LIMIT,
    ArkitFace,
    gaze_from_directions,
    is_number,
    quaternion_matrix,
)
from telepresence.drivers.livelink import CURVES

NAME: Final = "vmc"
"""Name of this driver in `/status` and in settings."""
PORT: Final = 39539
"""Default UDP port."""
RATE: Final = 10_000.0
"""Maximum number of packets read per second: some senders use a hundred packets per frame, one per message."""
Values = tuple[osc.Value, ...]
"""Arguments of an OSC message."""

BONES: Final = ("hips", "spine", "chest", "upperchest", "neck", "head")
"""Lower-case names of the bones, from root to tip, whose rotations are multiplied to the head rotation."""
EYES: Final = ("lefteye", "righteye")
"""Lower-case names of the bones of the left and right eye."""

PRESETS: Final[dict[str, dict[str, float]]] = {
    "blink": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "blink_l": {"eyeBlinkLeft": 1.0},
    "blinkleft": {"eyeBlinkLeft": 1.0},
    "blink_r": {"eyeBlinkRight": 1.0},
    "blinkright": {"eyeBlinkRight": 1.0},
    "a": {"jawOpen": 0.6, "mouthLowerDownLeft": 0.3, "mouthLowerDownRight": 0.3},
    "i": {"jawOpen": 0.1, "mouthStretchLeft": 0.4, "mouthStretchRight": 0.4},
    "u": {"jawOpen": 0.15, "mouthPucker": 0.7},
    "e": {"jawOpen": 0.25, "mouthStretchLeft": 0.25, "mouthStretchRight": 0.25},
    "o": {"jawOpen": 0.35, "mouthFunnel": 0.6},
    "joy": {"mouthSmileLeft": 0.7, "mouthSmileRight": 0.7, "cheekSquintLeft": 0.3, "cheekSquintRight": 0.3},
    "angry": {"browDownLeft": 0.7, "browDownRight": 0.7, "noseSneerLeft": 0.2, "noseSneerRight": 0.2},
    "sorrow": {"browInnerUp": 0.7, "mouthFrownLeft": 0.5, "mouthFrownRight": 0.5},
    "fun": {"mouthSmileLeft": 0.4, "mouthSmileRight": 0.4},
    "surprised": {"browInnerUp": 0.6, "eyeWideLeft": 0.6, "eyeWideRight": 0.6, "jawOpen": 0.2},
}
"""ARKit weights of each VRM preset expression, used if the sender has no ARKit blend shapes."""
_SAME: Final = {
    "aa": "a",
    "ih": "i",
    "ou": "u",
    "ee": "e",
    "oh": "o",
    "happy": "joy",
    "sad": "sorrow",
    "relaxed": "fun",
}
_ARKIT: Final = {name.lower(): name for name in CURVES}


class VmcReader:
    """Stateful parser of VMC packets; needs one instance per sender, because a packet changes only parts of the face.

    Attributes:
        left_out: one message for each invalid message of the last packet.
    """

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._pending: dict[str, float] = {}  # blend shapes until the next Apply, by lower-case name
        self._shapes: dict[str, float] = {}
        self._bones: dict[str, Float64] = {}
        self._tracks = True
        self._sent_s: float | None = None  # time in the packet that is parsed
        self._turned = False  # a bone was received since the last face

    def read(self, packet: bytes) -> ArkitFace | None:
        """Parse ``packet`` and return the updated face; None if the packet completes no frame, or no face is tracked.

        Unknown weights and bones are ignored; the previous value replaces an invalid one.

        Raises:
            UserError: the packet is not OSC, or all messages in it that are used are invalid.
        """
        self.left_out, self._sent_s = [], None
        bundled, moves, ends, used = packet.startswith(b"#"), False, False, False
        for message in osc.parse_packet(packet, _ADDRESSES):
            if message.address == _APPLY:
                self._shapes.update(self._pending)
                self._pending.clear()
                moves = True
            else:
                fault = message.fault or _PARSERS[message.address](self, message.values)
                used = used or fault is None
                if fault is None and message.address in _ENDS:
                    ends = True
                elif fault is not None:
                    self.left_out.append(fault)
        if self.left_out and not (used or moves):
            raise UserError(self.left_out[0])
        # Bones sent one per packet take effect with a message that is sent once per frame.
        moves = moves or (self._turned and (bundled or ends))
        if not moves or not self._tracks:
            return None
        self._turned = False
        return ArkitFace(self._weights(), self._head(), gaze=self._gaze(), sent_s=self._sent_s)

    def _parse_weight(self, values: Values) -> str | None:
        """Store a blend shape; returns why it is invalid, or None."""
        name, weight = (*values[:2], None, None)[:2]
        if not isinstance(name, str):
            return "malformed packet: /VMC/Ext/Blend/Val without a name"
        key = _SAME.get(name.lower(), name.lower())
        if key not in _ARKIT and key not in PRESETS:
            return None
        if not is_number(weight, WEIGHT_LIMIT):
            return f"malformed packet: the weight of {key} is not a number in its range"
        self._pending[key] = min(max(float(weight), 0.0), 1.0)  # type: ignore[arg-type]
        return None

    def _parse_bone(self, values: Values) -> str | None:
        """Store the rotation of a bone, if it is used; its position is not.  Returns why it is invalid, or None."""
        if not values or not isinstance(values[0], str):
            return "malformed packet: /VMC/Ext/Bone/Pos without a name"
        bone, quaternion = values[0].lower(), values[4:8]
        if bone not in BONES and bone not in EYES:
            return None
        matrix = None
        if len(quaternion) == 4 and all(is_number(value, 10.0) for value in quaternion):
            # Unity's x axis points to the avatar's right and ours to its left: the reflection negates y and z.
            x, y, z, w = (float(value) for value in quaternion)  # type: ignore[arg-type]
            matrix = quaternion_matrix(x, -y, -z, w)
        if matrix is None:
            return f"malformed packet: the quaternion of bone {bone} is not a rotation"
        self._bones[bone] = matrix
        self._turned = True
        return None

    def _parse_time(self, values: Values) -> str | None:
        """Store the sender's time; returns why it is invalid, or None."""
        if not values or not is_number(values[0], sys.float_info.max):
            return "malformed packet: /VMC/Ext/T without a time in seconds"
        self._sent_s = float(values[0])  # type: ignore[arg-type]
        return None

    def _parse_status(self, values: Values) -> str | None:
        """Store whether a face is tracked; returns why the status is invalid, or None."""
        if not values or not all(isinstance(value, int) for value in values[:4]):
            return "malformed packet: /VMC/Ext/OK without whole numbers"
        self._tracks = values[0] == 1 and (len(values) < 4 or values[3] == 1)
        return None

    def _weights(self) -> dict[str, float]:
        known = {_ARKIT[name]: weight for name, weight in self._shapes.items() if name in _ARKIT}
        if known:  # presets are coarser descriptions of the same face
            return known
        weights: dict[str, float] = {}
        for name, weight in self._shapes.items():
            for unit, part in PRESETS.get(name, {}).items():
                weights[unit] = min(weights.get(unit, 0.0) + part * weight, 1.0)
        return weights

    def _head(self) -> Float64 | None:
        turns = [self._bones[name] for name in BONES if name in self._bones]
        if not turns:
            return None
        whole: Float64 = np.eye(3)
        for turn in turns:
            whole = whole @ turn
        return whole

    def _gaze(self) -> Float64 | None:
        if not all(name in self._bones for name in EYES):
            return None
        axes = np.stack([self._bones[name][:, 2] for name in EYES])  # rotated z axes
        gaze = gaze_from_directions(axes)
        still = max(float(np.linalg.norm(axis_angle(self._bones[name]))) for name in EYES) < 1e-6
        # A model whose eyes are moved by blend shapes has eye bones at rest.
        return None if still else gaze


_PARSERS: Final[dict[str, Callable[[VmcReader, Values], str | None]]] = {
    "/VMC/Ext/Blend/Val": VmcReader._parse_weight,
    "/VMC/Ext/Bone/Pos": VmcReader._parse_bone,
    "/VMC/Ext/T": VmcReader._parse_time,
    "/VMC/Ext/OK": VmcReader._parse_status,
}
_APPLY: Final = "/VMC/Ext/Blend/Apply"
_ADDRESSES: Final = {_APPLY, *_PARSERS}
_ENDS: Final = {"/VMC/Ext/T", "/VMC/Ext/OK"}  # sent once per frame

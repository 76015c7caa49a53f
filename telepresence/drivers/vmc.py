"""Parser of the Virtual Motion Capture protocol (VMC): faces and bones as OSC over UDP, usually to port 39539.

It is sent by VSeeFace, Warudo, Waidayo and many other programs.  These messages move a face
(docs/protocols-drivers.md): blend shapes, which take effect with ``/VMC/Ext/Blend/Apply``; the bones from hips to eyes;
and the tracking status.  A packet usually holds one frame; frames that are split over packets are supported.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.geometry import axis_angle
from insta_runtime.types import Float64
from telepresence.drivers import osc
from telepresence.drivers.arkit import ArkitFace, gaze_from_directions, quaternion_matrix
from telepresence.drivers.livelink import CURVES

NAME: Final = "vmc"
"""Name of this driver."""
PORT: Final = 39539
"""Default UDP port."""
RATE: Final = 10_000.0
"""Maximum number of packets read per second: senders with one message per packet send a hundred per frame."""
SHAPES: Final = 256
"""Maximum number of blend shape names that are stored."""

BONES: Final = ("hips", "spine", "chest", "upperchest", "neck", "head")
"""Bones whose rotations are chained to the rotation of the head."""
EYES: Final = ("lefteye", "righteye")
"""Bones of the eyes."""

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
"""VRM's preset expressions in ARKit's units, used if the sender has no ARKit blend shapes."""
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
    """Parses VMC packets; one instance per sender, because packets build on each other."""

    def __init__(self) -> None:
        self._pending: dict[str, float] = {}  # blend shapes until the next Apply, by lower-case name
        self._shapes: dict[str, float] = {}
        self._bones: dict[str, Float64] = {}
        self._tracks = True
        self._turned = False  # a bone was received since the last face

    def read(self, packet: bytes) -> ArkitFace | None:
        """Parse ``packet`` and return the face after it; None if it does not change, or no face is tracked.

        Raises:
            UserError: the packet is not OSC, or a message has the wrong arguments.
        """
        sent_s: float | None = None
        bundled, moves, ends = packet.startswith(b"#"), False, False
        for message in osc.parse_packet(packet):
            address, values = message.address, message.values
            if address == "/VMC/Ext/Blend/Val":
                (name,), (weight,) = _arguments(message, 1, 1)
                self._note(name, weight)
            elif address == "/VMC/Ext/Blend/Apply":
                self._shapes.update(self._pending)
                self._pending.clear()
                moves = True
            elif address == "/VMC/Ext/Bone/Pos":
                (name,), numbers = _arguments(message, 1, 7)
                self._turned = self._turn(name, numbers[3:]) or self._turned
            elif address == "/VMC/Ext/T":
                sent_s, ends = _arguments(message, 0, 1)[1][0], True
            elif address == "/VMC/Ext/OK" and values and all(isinstance(value, int) for value in values):
                self._tracks, ends = values[0] == 1 and (len(values) < 4 or values[3] == 1), True
        # Bones sent one per packet take effect with a message that is sent once per frame.
        moves = moves or (self._turned and (bundled or ends))
        if not moves or not self._tracks:
            return None
        self._turned = False
        return ArkitFace(self._weights(), self._head(), gaze=self._gaze(), sent_s=sent_s)

    def _note(self, name: str, weight: float) -> None:
        key = _SAME.get(name.lower(), name.lower())
        if key in self._pending or len(self._pending) < SHAPES:
            self._pending[key] = min(max(weight, 0.0), 1.0)
        if len(self._shapes) > SHAPES:
            self._shapes.clear()

    def _turn(self, name: str, quaternion: list[float]) -> bool:
        bone = name.lower()
        if bone not in BONES and bone not in EYES:
            return False
        # Unity's x axis points to the avatar's right and ours to its left: the reflection negates y and z.
        x, y, z, w = quaternion
        matrix = quaternion_matrix(x, -y, -z, w)
        if matrix is None:
            raise UserError(f"malformed packet: the quaternion of bone {bone} is not a rotation")
        self._bones[bone] = matrix
        return True

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


def _arguments(message: osc.OscMessage, texts: int, numbers: int) -> tuple[list[str], list[float]]:
    """First arguments of ``message``: ``texts`` strings, then ``numbers`` numbers; further arguments are ignored."""
    found = message.values[:texts], message.values[texts : texts + numbers]
    words = [value for value in found[0] if isinstance(value, str)]
    figures = [float(value) for value in found[1] if isinstance(value, float | int) and abs(value) < 1e9]
    if len(words) < texts or len(figures) < numbers:
        raise UserError(f"malformed packet: {message.address} requires {texts} strings and {numbers} finite numbers")
    return words, figures

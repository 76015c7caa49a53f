"""Packets of Live Link Face, VMC and OpenSeeFace, built byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from insta_runtime.types import Float64

# The order in which Unreal Engine numbers ARKit's units (EARFaceBlendShape).
LIVELINK = (
    *("EyeBlinkLeft", "EyeLookDownLeft", "EyeLookInLeft", "EyeLookOutLeft", "EyeLookUpLeft"),
    *("EyeSquintLeft", "EyeWideLeft", "EyeBlinkRight", "EyeLookDownRight", "EyeLookInRight"),
    *("EyeLookOutRight", "EyeLookUpRight", "EyeSquintRight", "EyeWideRight", "JawForward", "JawLeft"),
    *("JawRight", "JawOpen", "MouthClose", "MouthFunnel", "MouthPucker", "MouthLeft", "MouthRight"),
    *("MouthSmileLeft", "MouthSmileRight", "MouthFrownLeft", "MouthFrownRight", "MouthDimpleLeft"),
    *("MouthDimpleRight", "MouthStretchLeft", "MouthStretchRight", "MouthRollLower", "MouthRollUpper"),
    *("MouthShrugLower", "MouthShrugUpper", "MouthPressLeft", "MouthPressRight", "MouthLowerDownLeft"),
    *("MouthLowerDownRight", "MouthUpperUpLeft", "MouthUpperUpRight", "BrowDownLeft", "BrowDownRight"),
    *("BrowInnerUp", "BrowOuterUpLeft", "BrowOuterUpRight", "CheekPuff", "CheekSquintLeft"),
    *("CheekSquintRight", "NoseSneerLeft", "NoseSneerRight", "TongueOut", "HeadYaw", "HeadPitch"),
    *("HeadRoll", "LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll", "RightEyeYaw", "RightEyePitch"),
    *("RightEyeRoll",),
)

# The order in which facetracker.py writes the features of a face.
OPENSEEFACE = (
    *("eye_l", "eye_r", "eyebrow_steepness_l", "eyebrow_updown_l", "eyebrow_quirk_l"),
    *("eyebrow_steepness_r", "eyebrow_updown_r", "eyebrow_quirk_r", "mouth_corner_updown_l"),
    *("mouth_corner_inout_l", "mouth_corner_updown_r", "mouth_corner_inout_r", "mouth_open", "mouth_wide"),
)


def livelink(
    values: Mapping[str, float] | None = None,
    *,
    frame: int = 1000,
    device: bytes = b"DEADC0DE-1337-1337-1337-CAFEBABE0001",
    subject: bytes = b"iPhone",
    face: bool = True,
) -> bytes:
    """Packet of Live Link Face at 60 frames per second; ``values`` by Unreal's names."""
    head = b"\x06" + struct.pack("!i", len(device)) + device + struct.pack("!i", len(subject)) + subject
    head += struct.pack("!ifii", frame, 0.25, 60, 1)
    if not face:
        return head
    curves = [(values or {}).get(name, 0.0) for name in LIVELINK]
    return head + struct.pack("!B61f", 61, *curves)


def osc(address: str, *values: str | float | int) -> bytes:
    """Encode an OSC message."""

    def text(words: str) -> bytes:
        raw = words.encode() + b"\0"
        return raw + b"\0" * (-len(raw) % 4)

    tags, body = ",", b""
    for value in values:
        if isinstance(value, str):
            tags, body = tags + "s", body + text(value)
        elif isinstance(value, int):
            tags, body = tags + "i", body + struct.pack(">i", value)
        else:
            tags, body = tags + "f", body + struct.pack(">f", value)
    return text(address) + text(tags) + body


def bundle(*elements: bytes) -> bytes:
    """Encode an OSC bundle with the time tag "immediately"."""
    return b"#bundle\0" + struct.pack(">Q", 1) + b"".join(struct.pack(">i", len(e)) + e for e in elements)


def vmc(
    shapes: Mapping[str, float] | None = None,
    bones: Mapping[str, Sequence[float]] | None = None,
    *,
    time: float = 1.0,
    status: Sequence[int] = (1,),
) -> bytes:
    """Packet with one frame of VMC; ``bones`` are quaternions x, y, z, w in Unity's axes."""
    elements = [osc("/VMC/Ext/OK", *status), osc("/VMC/Ext/T", float(time))]
    for name, quaternion in (bones or {}).items():
        elements.append(osc("/VMC/Ext/Bone/Pos", name, 0.0, 1.5, 0.0, *map(float, quaternion)))
    elements += [osc("/VMC/Ext/Blend/Val", name, float(weight)) for name, weight in (shapes or {}).items()]
    return bundle(*elements, osc("/VMC/Ext/Blend/Apply"))


def openseeface(
    rotation: Float64,
    *,
    at: float = 1.7e9,
    face: int = 0,
    open_eyes: tuple[float, float] = (1.0, 1.0),
    fitted: bool = True,
    translation: Sequence[float] = (0.0, 0.0, -3.0),
    looks: tuple[Sequence[float], Sequence[float]] = ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)),
    features: Mapping[str, float] | None = None,
) -> bytes:
    """Record of OpenSeeFace with the layout of its facetracker.py.

    ``rotation`` is head to camera by our conventions, ``looks`` the gaze directions of the right, then the left eye
    (subject's left, up, out of the face), ``open_eyes`` right, then left.
    """
    # Landmarks have rows first, the model's x is to the subject's right, and the fitted head is behind the camera.
    swap, mirror = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.diag([-1.0, 1.0, 1.0])
    record = struct.pack("<diff2fBf", at, face, 640.0, 360.0, *open_eyes, int(fitted), 20.0)
    record += struct.pack("<4f", *_their_quaternion(swap @ rotation @ mirror))
    record += struct.pack("<3f", 180.0, 0.0, 90.0)
    record += struct.pack("<3f", *translation)
    record += np.ones(68, "<f4").tobytes() + np.zeros((68, 2), "<f4").tobytes()
    points = np.zeros((70, 3))  # in its model: right, up, out
    points[68:70] = [[0.258, 0.276, -0.325], [-0.258, 0.276, -0.325]]
    points[66:68] = points[68:70] + 0.1 * np.array(looks) * [-1.0, 1.0, 1.0]
    record += (points * [1.0, -1.0, -1.0]).astype("<f4").tobytes()
    return record + struct.pack("<14f", *((features or {}).get(name, 0.0) for name in OPENSEEFACE))


def _their_quaternion(m: Float64) -> Float64:
    """Quaternion x, y, z, w of the transposed matrix, as the tracker sends it."""
    products = np.array(
        [
            [1 + m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[2, 0] + m[0, 2], m[1, 2] - m[2, 1]],
            [m[0, 1] + m[1, 0], 1 - m[0, 0] + m[1, 1] - m[2, 2], m[1, 2] + m[2, 1], m[2, 0] - m[0, 2]],
            [m[2, 0] + m[0, 2], m[1, 2] + m[2, 1], 1 - m[0, 0] - m[1, 1] + m[2, 2], m[0, 1] - m[1, 0]],
            [m[1, 2] - m[2, 1], m[2, 0] - m[0, 2], m[0, 1] - m[1, 0], 1 + np.trace(m)],
        ]
    )
    row: Float64 = products[int(np.argmax(np.diag(products)))]
    return row / np.linalg.norm(row)

"""The parameter message: its fields, its limits, and how it moves a head state.

The wire format is documented in docs/protocols-zeromq.md.  Whatever arrives is hostile until `decode` has
returned; what it refuses is a UserError of one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from insta_runtime.errors import UserError
from insta_runtime.types import Float32, HeadState

VERSION: Final = 2
VERSIONS: Final = (1, 2)
"""Those that are understood."""
MAX_BYTES: Final = 16 * 1024
"""Largest message; a complete one with 100 expression weights has about 1.1 kB."""

Basis = Literal["arkit52", "flame"]
Vector = tuple[float, float, float]
PersonId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
HeadId = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{16}|[0-9a-f]{64})$")]
SenderId = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z._-]{1,32}$")]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Weights = Annotated[list[float], msgspec.Meta(min_length=1, max_length=512)]

FLAME_WEIGHT: Final = 8.0
"""FLAME weights are about N(0, 1); beyond this many standard deviations they are clamped."""
JOINT_ANGLE: Final = math.pi / 2
"""Largest component of a jaw, neck or eye rotation (radians); beyond it is clamped."""
HEAD_ANGLE: Final = 2 * math.pi
"""Largest component of the head rotation (radians); beyond it the message is refused."""
NEAREST_M: Final = 0.05
FARTHEST_M: Final = 20.0


class Parameters(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True):
    """One message.  Units and frames are those of `HeadState`.

    A field that is absent keeps its value; None says that its value is not known any more.
    """

    v: int
    seq: Natural
    t_capture_ns: Natural
    head: HeadId
    basis: Basis
    expression: Weights | UnsetType | None = UNSET
    jaw_pose: Vector | UnsetType | None = UNSET
    neck_pose: Vector | UnsetType | None = UNSET
    eye_pose: tuple[Vector, Vector] | UnsetType | None = UNSET
    eyelids: tuple[float, float] | UnsetType | None = UNSET
    rotation: Vector | UnsetType | None = UNSET
    translation: Vector | UnsetType | None = UNSET
    person: PersonId | None = None
    sender: SenderId | None = None


FIELDS: Final = ("expression", "jaw_pose", "neck_pose", "eye_pose", "eyelids", "rotation", "translation")
"""Those that move a face."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Parameters)


def encode(parameters: Parameters) -> bytes:
    """The msgpack map of a message."""
    return _encoder.encode(parameters)


def decode(payload: bytes) -> Parameters:
    """A message from the bytes of one ZeroMQ frame.

    Raises:
        UserError: too long, not msgpack, of another version, or with a field of the wrong name, type or length.
    """
    if len(payload) > MAX_BYTES:
        raise UserError(f"malformed message: {len(payload)} bytes, at most {MAX_BYTES} are allowed")
    try:
        parameters = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"malformed message: {error}") from None
    if parameters.v not in VERSIONS:
        raise UserError(f"message of version {parameters.v}, this daemon speaks version {VERSION}")
    return parameters


def changes(parameters: Parameters, expressions: int, basis: str, head_sha256: str) -> dict[str, Float32 | None]:
    """The fields that a message gives, and None for those that it takes back; what is out of range is clamped.

    Raises:
        UserError: the message is for another head or basis, has another number of weights than ``expressions``, a
            number that is not finite, or a head that is not before the camera.
    """
    if parameters.basis != basis or not head_sha256.startswith(parameters.head):
        raise UserError(
            f"message for head {parameters.head[:16]} ({parameters.basis}), "
            f"this daemon shows head {head_sha256[:16]} ({basis})"
        )
    given = {name: getattr(parameters, name) for name in FIELDS}
    # In version 1, which nobody could take a field back in, None was as good as nothing.
    absent = (UNSET, None) if parameters.v == 1 else (UNSET,)
    found = {name: value for name, value in given.items() if all(value is not nothing for nothing in absent)}
    moved = {name: _array(name, value) for name, value in found.items() if value is not None}
    if "expression" in moved:
        if moved["expression"].size != expressions:
            raise UserError(f"expression has {moved['expression'].size} weights, this head has {expressions}")
        low, high = (0.0, 1.0) if basis == "arkit52" else (-FLAME_WEIGHT, FLAME_WEIGHT)
        moved["expression"] = moved["expression"].clip(low, high)
    for name in {"jaw_pose", "neck_pose", "eye_pose"} & moved.keys():
        moved[name] = moved[name].clip(-JOINT_ANGLE, JOINT_ANGLE)
    if "eyelids" in moved:
        moved["eyelids"] = moved["eyelids"].clip(0.0, 1.0)
    if "rotation" in moved and np.abs(moved["rotation"]).max() > HEAD_ANGLE:
        raise UserError("rotation is not an axis-angle vector in radians: a component exceeds 2 pi")
    if "translation" in moved:
        x, y, z = moved["translation"]
        if not NEAREST_M <= z <= FARTHEST_M or max(abs(x), abs(y)) > FARTHEST_M:
            raise UserError("translation puts the head out of sight: metres, z forward of the camera")
    return dict.fromkeys(found.keys() - moved.keys()) | moved


def merged(state: HeadState, given: Mapping[str, Float32]) -> HeadState:
    """``state`` with the fields that are given."""
    return HeadState(**(state.arrays() | dict(given)), t_capture_ns=state.t_capture_ns)


def _array(name: str, value: object) -> Float32:
    # Finite in float32, not only in float64: 1e300 would arrive as infinity.
    with np.errstate(over="ignore"):
        array = np.asarray(value, dtype=np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{name} holds a number that is not finite")
    return array

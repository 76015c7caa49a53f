"""Parameter messages over ZeroMQ: fields, limits, and conversion to the fields of a head state.

The wire format is documented in docs/protocols-zeromq.md.  Received bytes are untrusted until `decode` has returned;
invalid messages raise a UserError of one line.
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
"""Version of the messages that are sent."""
VERSIONS: Final = (1, 2)
"""Versions of the messages that are accepted."""
MAX_BYTES: Final = 16 * 1024
"""Maximum size of a message in bytes; a complete message with 100 expression weights has about 1.1 kB."""

Basis = Literal["arkit52", "flame"]
"""Expression basis of a head model."""
Vector = tuple[float, float, float]
"""Type of a vector of three floats in a message."""
PersonId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
"""Fingerprint of a subject's identity code: 16 hexadecimal digits."""
HeadId = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{16}|[0-9a-f]{64})$")]
"""SHA-256 of a head model: 64 hexadecimal digits, or the first 16."""
SenderId = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z._-]{1,32}$")]
"""Identifier of a sending program."""
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Non-negative 64-bit integer."""
Weights = Annotated[list[float], msgspec.Meta(min_length=1, max_length=512)]
"""Type of the expression weights in a message: 1 to 512 floats."""

FLAME_WEIGHT: Final = 8.0
"""Magnitude to which FLAME expression weights are clamped, in standard deviations."""
JOINT_ANGLE: Final = math.pi / 2
"""Magnitude to which the components of jaw, neck and eye rotations are clamped, in radians."""
HEAD_ANGLE: Final = 2 * math.pi
"""Largest component of the head rotation in radians; a rotation with a larger one is refused."""
NEAREST_M: Final = 0.05
"""Smallest depth of the head (z in camera space) in metres; a smaller one is refused."""
FARTHEST_M: Final = 20.0
"""Largest magnitude of a coordinate of the head position in metres; a larger one is refused."""


class ParameterMessage(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True):
    """One parameter message; units and frames of reference of the fields in `FIELDS` are those of `HeadState`.

    A field that is absent keeps its last value; None resets it to the base state.

    Attributes:
        v: version of the message format.
        seq: sequence number of the message.
        t_capture_ns: capture time on the sender's clock, in ns.
        head: SHA-256, or its first 16 digits, of the head model that the parameters are for.
        basis: expression basis of that head model.
        person: fingerprint of the identity code of the sender's subject; None if unknown.
        sender: identifier of the sending program; None if not stated.
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
"""Names of the fields that hold head state parameters."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ParameterMessage)


def encode(parameters: ParameterMessage) -> bytes:
    """Encode a message as a msgpack map."""
    return _encoder.encode(parameters)


def decode(payload: bytes) -> ParameterMessage:
    """Decode a message from the bytes of one ZeroMQ frame.

    Raises:
        UserError: the message is too long, not msgpack, of another version, or has a field of the wrong name, type or
            length.
    """
    if len(payload) > MAX_BYTES:
        raise UserError(f"malformed message: {len(payload)} bytes, expected at most {MAX_BYTES}")
    try:
        parameters = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"malformed message: {error}") from None
    if parameters.v not in VERSIONS:
        raise UserError(f"message of version {parameters.v}, expected version {VERSION}")
    return parameters


def validated_fields(
    parameters: ParameterMessage, expressions: int, basis: str, head_sha256: str
) -> tuple[dict[str, Float32 | None], list[str]]:
    """Return (valid fields of a message, one error message for each field that was left out).

    A valid field is an array, or None if it is to be reset; values out of range are clamped.  A field is left out if it
    has a number that is not finite, another number of weights than ``expressions``, or an implausible head rotation or
    position.  ``basis`` and ``head_sha256`` are those of the head model in use.

    Raises:
        UserError: the message is for another head model or basis, or none of its fields is valid.
    """
    if parameters.basis != basis or not head_sha256.startswith(parameters.head):
        raise UserError(
            f"message for head {parameters.head[:16]} ({parameters.basis}), "
            f"this daemon shows head {head_sha256[:16]} ({basis})"
        )
    given = {name: getattr(parameters, name) for name in FIELDS}
    # Version 1 had no way to reset a field, so None is the same as absent.
    absent = (UNSET, None) if parameters.v == 1 else (UNSET,)
    found = {name: value for name, value in given.items() if all(value is not nothing for nothing in absent)}
    moved: dict[str, Float32 | None] = {}
    left_out: list[str] = []
    for name, value in found.items():
        try:
            moved[name] = None if value is None else _validated(name, _array(name, value), expressions, basis)
        except UserError as error:
            left_out.append(str(error))
    if left_out and not moved:
        raise UserError(left_out[0])
    return moved, left_out


def _validated(name: str, array: Float32, expressions: int, basis: str) -> Float32:
    """The value ``array`` of the field ``name``, clamped to its range.  Raises UserError if it is invalid."""
    if name == "expression":
        if array.size != expressions:
            raise UserError(f"expression has {array.size} weights, this head has {expressions}")
        low, high = (0.0, 1.0) if basis == "arkit52" else (-FLAME_WEIGHT, FLAME_WEIGHT)
        return array.clip(low, high)
    if name in ("jaw_pose", "neck_pose", "eye_pose"):
        return array.clip(-JOINT_ANGLE, JOINT_ANGLE)
    if name == "eyelids":
        return array.clip(0.0, 1.0)
    if name == "rotation" and np.abs(array).max() > HEAD_ANGLE:
        raise UserError("rotation is not an axis-angle vector in radians: a component exceeds 2 pi")
    if name == "translation":
        x, y, z = array
        if not NEAREST_M <= z <= FARTHEST_M or max(abs(x), abs(y)) > FARTHEST_M:
            raise UserError("translation puts the head out of view: it is in metres, with z forward of the camera")
    return array


def with_fields(state: HeadState, given: Mapping[str, Float32]) -> HeadState:
    """Return ``state`` with the given fields replaced."""
    return HeadState(**(state.arrays() | dict(given)), t_capture_ns=state.t_capture_ns)


def _array(name: str, value: object) -> Float32:
    # Checked in float32 and not only in float64: 1e300 becomes infinity.
    with np.errstate(over="ignore"):
        array = np.asarray(value, dtype=np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{name} holds a number that is not finite")
    return array

"""Canonical face mesh of MediaPipe, read from the face landmarker's model file."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from insta_runtime.types import Float32


def mirror_landmarks(landmarker_path: Path) -> NDArray[np.int64]:
    """Number of the left-right mirrored landmark of each landmark (478,), from the canonical face in a model file."""
    points = canonical_face(landmarker_path).astype(np.float64)
    distance = np.linalg.norm(points[:, None] * (-1.0, 1.0, 1.0) - points, axis=2)
    irises = np.array([473, 474, 475, 476, 477, 468, 469, 470, 471, 472])
    return np.concatenate([distance.argmin(1), irises])


def canonical_face(landmarker_path: Path) -> Float32:
    """Vertices (468, 3) of MediaPipe's canonical face mesh, in cm: x to the subject's left, y up, z forward.

    They are read from the geometry metadata in the ``.task`` archive, a protocol buffer: message field 1 is the mesh,
    whose field 3 repeats the floats (x, y, z, u, v) of each vertex.
    """
    with zipfile.ZipFile(landmarker_path) as archive:
        metadata = archive.read("geometry_pipeline_metadata_landmarks.binarypb")
    mesh = next(value for field, value in _fields(metadata) if field == 1 and isinstance(value, bytes))
    floats = [value for field, value in _fields(mesh) if field == 3 and isinstance(value, float)]
    return np.array(floats, dtype=np.float32).reshape(-1, 5)[:, :3]


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    """Iterate over the fields (number, value) of an encoded protocol buffer message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        field, wire = divmod(varint(), 8)
        if wire == 0:
            yield field, varint()
        elif wire == 2:
            length = varint()
            yield field, message[at : at + length]
            at += length
        elif wire == 5:
            yield field, struct.unpack_from("<f", message, at)[0]
            at += 4
        else:
            raise ValueError(f"unexpected wire type {wire} in the geometry metadata")

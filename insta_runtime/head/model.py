"""The head model: a template mesh, and how it changes with identity, expression and pose."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from insta_runtime.head.embedding import LandmarkEmbedding
from insta_runtime.types import Float32

JOINTS = ("root", "neck", "jaw", "eye_left", "eye_right")
PARENTS = (-1, 0, 1, 1, 1)
REGIONS = ("mouth", "lips", "eyes", "scalp", "ears", "neck", "face")

# Values of `HeadModel.face_group`.
SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TEETH_LOWER, TONGUE = range(6)


@dataclass(frozen=True)
class HeadModel:
    """A parametric head.  Head space: metres, x to the subject's left, y up, z out of the face.

    V vertices, F triangles, S identity components, E expression units, five joints (`JOINTS`; a joint's
    parent is in `PARENTS`).  `HeadRig` turns parameters into vertices.

    Attributes:
        name: what to call it in a message.
        basis: meaning of the expression: ``arkit52`` units in [0, 1], or ``flame`` components about N(0, 1).
        sha256: of the file it was read from; avatars and takes hold it and belong to no other head.
        licence: one paragraph on where it comes from and what may be done with it.
        template: (V, 3) float32, the mean face at rest.
        shape_dirs: (S, V, 3) float32 metres for one standard deviation.
        expression_dirs: (E, V, 3) float32 metres for one unit.
        expression_names: E names; the 52 of ARKit, or ``expression_00`` and so on.
        pose_dirs: (36, V, 3) float32 correctives, times the flattened ``R - I`` (row by row) of neck, jaw,
            left and right eye; None for a head without.
        joints: (5, 3) float32 joints of the template.
        joint_shape_dirs: (S, 5, 3) float32, how they follow the identity.
        skin_weights: (V, 5) float32, rows sum to 1.
        eyelid_dirs: (2, V, 3) float32 metres that close the left, the right eye.
        faces: (F, 3) int64, counter-clockwise seen from outside.
        face_group: (F,) int8: skin, left and right eyeball, upper and lower teeth, tongue.
        masks: for each of `REGIONS` a soft (V,) float32 in [0, 1]; ``mouth`` includes its inside.
        embedding: where MediaPipe's landmarks lie, if that came with the file.
    """

    name: str
    basis: Literal["arkit52", "flame"]
    sha256: str
    licence: str
    template: Float32
    shape_dirs: Float32
    expression_dirs: Float32
    expression_names: tuple[str, ...]
    pose_dirs: Float32 | None
    joints: Float32
    joint_shape_dirs: Float32
    skin_weights: Float32
    eyelid_dirs: Float32
    faces: NDArray[np.int64]
    face_group: NDArray[np.int8]
    masks: dict[str, Float32]
    embedding: LandmarkEmbedding | None

    def vertex_group(self) -> NDArray[np.int8]:
        """(V,) int8: the `face_group` of the part that each vertex belongs to."""
        group = np.zeros(len(self.template), dtype=np.int8)
        group[self.faces.ravel()] = np.repeat(self.face_group, 3)
        return group


def fingerprint(shape: Float32) -> str:
    """16 hexadecimal digits that tell one person's identity code (S,) from another's."""
    return hashlib.sha256(np.ascontiguousarray(shape, dtype="<f4").tobytes()).hexdigest()[:16]

"""Parametric head model: a template mesh and its deformations by identity, expression and pose."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from insta_runtime.head.embedding import LandmarkEmbedding
from insta_runtime.types import Float32

JOINTS = ("root", "neck", "jaw", "eye_left", "eye_right")
"""Names of the five joints."""
PARENTS = (-1, 0, 1, 1, 1)
"""Index of each joint's parent; -1 for the root."""
REGIONS = ("mouth", "lips", "eyes", "scalp", "ears", "neck", "face")
"""Names of the vertex masks of a head model."""

# Values of `HeadModel.face_group`.
SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TEETH_LOWER, TONGUE = range(6)


@dataclass(frozen=True)
class HeadModel:
    """Parametric head model.  Head space: metres, x to the subject's left, y up, z out of the face.

    It has V vertices, F triangles, S identity components, E expression units and the five `JOINTS`.  `HeadRig` computes
    posed vertices.

    Attributes:
        name: name for messages.
        basis: meaning of the expression: ``arkit52`` units in [0, 1], or ``flame`` components about N(0, 1).
        sha256: SHA-256 of its file; avatars and takes store it and can only be used with the same head model.
        licence: one paragraph on origin and permitted use.
        template: (V, 3) float32 vertices of the mean face at rest.
        shape_dirs: (S, V, 3) float32 displacements in metres for one standard deviation of each identity component.
        expression_dirs: (E, V, 3) float32 displacements in metres for one unit of expression.
        expression_names: E names; the 52 of ARKit, or ``expression_00`` and so on.
        pose_dirs: (36, V, 3) float32 pose correctives, multiplied by the flattened ``R - I`` (row by row) of neck, jaw,
            left and right eye; None for a head model without them.
        joints: (5, 3) float32 joints of the template, metres.
        joint_shape_dirs: (S, 5, 3) float32 displacements of the joints for one standard deviation.
        skin_weights: (V, 5) float32 skinning weights; rows sum to 1.
        eyelid_dirs: (2, V, 3) float32 displacements in metres that close the left, then the right eye.
        faces: (F, 3) int64, counter-clockwise seen from outside.
        face_group: (F,) int8 part of each triangle: SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TEETH_LOWER or TONGUE.
        masks: soft vertex mask (V,) float32 in [0, 1] of each of `REGIONS`; ``mouth`` includes the mouth cavity.
        embedding: positions of MediaPipe's landmarks on the mesh, if the file contains them.
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
        """Part of the head that each vertex belongs to, (V,) int8: SKIN, EYE_LEFT, ... as in `face_group`."""
        group = np.zeros(len(self.template), dtype=np.int8)
        group[self.faces.ravel()] = np.repeat(self.face_group, 3)
        return group


def fingerprint(shape: Float32) -> str:
    """Fingerprint of an identity code (S,): the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(np.ascontiguousarray(shape, dtype="<f4").tobytes()).hexdigest()[:16]

"""Where the 478 face landmarks lie on a head mesh, and how they move with its parameters."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from insta_runtime.types import Float32

if TYPE_CHECKING:
    from insta_runtime.head.model import HeadModel

LANDMARKS = 478  # MediaPipe Face Landmarker: 468 of the face, then 5 of each iris


@dataclass(frozen=True)
class LandmarkEmbedding:
    """Landmarks of MediaPipe's Face Landmarker as points of the template's triangles.

    Attributes (L = 478):
        face: (L,) int32 triangle that carries the landmark, -1 where it has none (the irises).
        bary: (L, 3) float32 barycentric coordinates in that triangle; rows sum to 1.
        sd: (L,) float32 metres, how far the landmark wanders on the surface over identities and views.
        keep: (L,) bool, whether the landmark is steady enough to be fitted.
        weight: (L,) float32 relative weight in a fit; zero where not kept.
    """

    face: NDArray[np.int32]
    bary: Float32
    sd: Float32
    keep: NDArray[np.bool_]
    weight: Float32

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Every field by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def kept(self) -> NDArray[np.int64]:
        """(K,) numbers of the landmarks to fit, ascending."""
        return np.flatnonzero(self.keep)

    def points(self, vertices: NDArray[np.floating], faces: NDArray[np.int64]) -> NDArray[np.floating]:
        """The landmarks (..., L, 3) on posed ``vertices`` (..., V, 3); nonsense where ``face`` is -1."""
        corners = vertices[..., faces[self.face], :]
        return np.einsum("...lkc,lk->...lc", corners, self.bary)


@dataclass(frozen=True)
class LandmarkBasis:
    """The landmarks of one identity as functions of its parameters, in head space, metres.

    A head whose motion is all in its expression units is linear: ``rest + tensordot(expression,
    expression_dirs, 1)``, plus ``eyelid_dirs`` likewise.  For a head with a jaw joint (FLAME) that sum is the
    point before skinning: add ``pose_dirs`` times the flattened ``R - I`` of neck, jaw and eyes where present,
    then blend the joints' motion by ``skin_weights`` about ``joints``.

    Attributes:
        rest: (L, 3) float32 landmarks of the neutral face.
        expression_dirs: (E, L, 3) float32.
        eyelid_dirs: (2, L, 3) float32, left then right.
        pose_dirs: (36, L, 3) float32, or None.
        skin_weights: (L, 5) float32.
        joints: (5, 3) float32 joints of this identity.
    """

    rest: Float32
    expression_dirs: Float32
    eyelid_dirs: Float32
    pose_dirs: Float32 | None
    skin_weights: Float32
    joints: Float32


def landmark_basis(model: HeadModel, embedding: LandmarkEmbedding, shape: NDArray[np.floating]) -> LandmarkBasis:
    """The basis of all L landmarks for the identity ``shape`` (S,); rows of landmarks without a face are zero."""
    corners = model.faces[embedding.face]  # (L, 3)
    bary = np.where(embedding.face[:, None] >= 0, embedding.bary, 0.0).astype(np.float32)

    def sample(field: Float32) -> Float32:
        """(..., V, C) values of vertices -> (..., L, C) of landmarks."""
        return np.einsum("...lkc,lk->...lc", field[..., corners, :], bary).astype(np.float32)

    code = np.asarray(shape, dtype=np.float32)
    return LandmarkBasis(
        rest=sample(model.template) + np.tensordot(code, sample(model.shape_dirs), 1),
        expression_dirs=sample(model.expression_dirs),
        eyelid_dirs=sample(model.eyelid_dirs),
        pose_dirs=None if model.pose_dirs is None else sample(model.pose_dirs),
        skin_weights=sample(model.skin_weights),
        joints=model.joints + np.tensordot(code, model.joint_shape_dirs, 1),
    )

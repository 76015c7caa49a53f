"""Landmark basis: positions of face landmarks on the head model as a function of identity, face units and jaw.

The head fit estimates *units*: the expression components, followed by the two eyelids if the head model has separate
lid shapes (FLAME).  Each unit has a prior (mean from a blendshape score, weight), bounds, and a temporal weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError
from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, Float64

PCA_COMPONENTS = 50
"""Number of fitted components of a PCA expression basis (FLAME); landmarks do not determine the others."""
SCORE_WEIGHT = 50.0
"""Prior weight (inverse variance) of a unit around the blendshape score of the same name."""
PCA_WEIGHT = 1.0
"""Prior weight (inverse variance) of a PCA expression component around zero."""
TEMPORAL_WEIGHT = 44.0
"""Weight of the squared difference between a unit and its value 1/30 s earlier (temporal smoothness)."""
PCA_TEMPORAL_WEIGHT = 4.0
"""Weight of the squared difference between a PCA expression component and its value 1/30 s earlier."""
JAW_WEIGHT = np.array([100.0, 400.0, 400.0])
"""Prior weights (inverse variances) of the jaw joint's three axis-angle components, in 1/rad^2."""
JAW_PITCH = 0.42
"""Pitch of the jaw joint, in radians, that a jawOpen score of 1 stands for."""
JAW_JOINT = 2
"""Index of the jaw among the joints of the FLAME head model."""

Indices = NDArray[np.int64]
"""Integer array of landmark numbers or indices."""


@dataclass(frozen=True)
class UnitPriors:
    """Gaussian priors, bounds and temporal weights of the U face units of a head model.

    names: names of the blendshape scores that are the prior means; None: mean 0.  weight: (U,) inverse variances.
    temporal: (U,) weights of squared changes in 1/30 s.  low, high: (U,) bounds.
    """

    names: tuple[str | None, ...]
    weight: Float64
    temporal: Float64
    low: Float64
    high: Float64

    def mean(self, scores: dict[str, float]) -> Float64:
        """Prior means (U,) of the units, from the blendshape scores of a frame by name."""
        return np.array([scores.get(name, 0.0) if name else 0.0 for name in self.names])


@dataclass(frozen=True)
class LandmarkBasis:
    """Positions of L landmarks of one identity, in head space (metres), as a function of U face units and of the jaw.

    Units are the expression weights, followed by two eyelid closings for FLAME.  With A and B affine in the units, a
    landmark lies at ``A + R(jaw) B``; ``turning`` (B) is None for a head model that opens its mouth with units alone.
    A and B contain the skinning weights of the corners of the landmark's triangle, so the position is exact.

    Attributes:
        indices: (L,) landmark numbers among MediaPipe's 478.
        weights: (L,) weights in the fit: reliability times importance (lids and lips are more important).
        priors: priors, bounds and temporal weights of the units.
        base, turning: (L, 3) constant parts of A and B.
        directions, turning_directions: (3, L, U) changes of A and B with the units.
        correctives, turning_correctives: (9, L, 3) pose correctives of A and B, multiplied by ``R(jaw) - 1``.
        normals: (L, 3) outward normals at rest.
        shape_directions, turning_shape_directions: (3, L, S) changes of A and B with the identity code.
    """

    indices: Indices
    weights: Float64
    priors: UnitPriors
    base: Float64
    directions: Float64
    normals: Float64
    shape_directions: Float64
    turning: Float64 | None = None
    turning_directions: Float64 | None = None
    turning_shape_directions: Float64 | None = None
    correctives: Float64 | None = None
    turning_correctives: Float64 | None = None

    @property
    def units(self) -> int:
        """Number U of face units: expression weights and, for FLAME, two eyelid closings."""
        return self.directions.shape[2]

    @property
    def has_jaw(self) -> bool:
        """Whether the head model opens its mouth with a jaw joint (FLAME)."""
        return self.turning is not None

    def with_identity(self, shape: Float32 | Float64, offsets: Float64 | float = 0.0) -> LandmarkBasis:
        """Landmark basis of a subject, computed from this basis of the mean identity.

        ``shape`` (S,) is the identity code; ``offsets`` (L, 3) are displacements of the landmarks, in metres.
        """
        base = self.base + (self.shape_directions @ shape).T + offsets
        if self.turning is None:
            return replace(self, base=base)
        assert self.turning_shape_directions is not None
        return replace(self, base=base, turning=self.turning + (self.turning_shape_directions @ shape).T)

    def moved(self, offsets: Float64) -> LandmarkBasis:
        """Landmark basis with each landmark displaced by a row of ``offsets`` (L, 3), in metres, in head space."""
        return replace(self, base=self.base + offsets)

    def by_shape(self, jaw: Float64) -> Float64:
        """Derivative (3, L, S) of the landmark positions by the identity code, for the jaw rotation ``jaw`` (3,)."""
        if self.turning_shape_directions is None:
            return self.shape_directions
        return self.shape_directions + np.tensordot(rotation_matrix(jaw), self.turning_shape_directions, 1)

    def points(self, units: Float64, jaw: Float64) -> Float64:
        """Landmark positions (L, 3), in metres in head space, for ``units`` (U,) and ``jaw`` (3,) axis-angle."""
        still = self.base + (self.directions @ units).T
        if self.turning is None:
            return still
        assert self.turning_directions is not None
        return self._turned(still, self.turning + (self.turning_directions @ units).T, jaw)

    def jacobian(self, units: Float64, jaw: Float64) -> tuple[Float64, Float64, Float64 | None]:
        """Landmark positions (L, 3), and their derivatives by units (3, L, U) and by jaw angles (3, L, 3).

        The last one is None for a head model without a jaw joint.
        """
        still = self.base + (self.directions @ units).T
        if self.turning is None:
            return still, self.directions, None
        assert self.turning_directions is not None
        turning = self.turning + (self.turning_directions @ units).T
        points = self._turned(still, turning, jaw)
        by_units = self.directions + np.tensordot(rotation_matrix(jaw), self.turning_directions, 1)
        step = 1e-5
        by_jaw = [(self._turned(still, turning, jaw + step * axis) - points).T / step for axis in np.eye(3)]
        return points, by_units, np.stack(by_jaw, axis=2)

    def _turned(self, still: Float64, turning: Float64, jaw: Float64) -> Float64:
        turn = rotation_matrix(jaw)
        if self.correctives is not None and self.turning_correctives is not None:
            feature = (turn - np.eye(3)).reshape(9)
            still = still + np.tensordot(feature, self.correctives, 1)
            turning = turning + np.tensordot(feature, self.turning_correctives, 1)
        return still + turning @ turn.T


def landmark_basis(head: HeadModel) -> LandmarkBasis:
    """Landmark basis of the mean identity of ``head``.  Raises UserError if ``head`` has no landmark embedding."""
    embedding = head.embedding
    if embedding is None:
        raise UserError(
            f"the head model {head.name} has no landmark embedding and cannot be tracked: choose another head model"
        )
    indices = np.flatnonzero(embedding.keep)
    corners = head.faces[embedding.face[indices]]  # (L, 3)
    parts = embedding.bary[indices].astype(np.float64)  # (L, 3)

    def gather(values: NDArray[np.floating], weight: Float64 | None = None) -> Float64:
        """Interpolate values (..., V, 3) at vertices to landmarks (..., L, 3), corners weighted by ``weight`` (V,)."""
        share = parts if weight is None else parts * weight[corners]
        return np.einsum("lc,...lcx->...lx", share, values[..., corners, :].astype(np.float64))

    def lead(values: Float64) -> Float64:
        """Transpose (N, L, 3) to (3, L, N)."""
        return np.ascontiguousarray(values.transpose(2, 1, 0))

    is_pca = head.basis == "flame"
    moves = head.expression_dirs[:PCA_COMPONENTS] if is_pca else head.expression_dirs
    if is_pca:
        moves = np.concatenate([moves, head.eyelid_dirs])
    normals = gather(_vertex_normals(head.template, head.faces))
    common = {
        "indices": indices,
        "weights": embedding.weight[indices].astype(np.float64),
        "priors": _priors(head),
        "normals": normals / np.linalg.norm(normals, axis=1, keepdims=True),
    }
    if not is_pca:
        return LandmarkBasis(
            base=gather(head.template),
            directions=lead(gather(moves)),
            shape_directions=lead(gather(head.shape_dirs)),
            **common,
        )
    jaw = head.skin_weights[:, JAW_JOINT].astype(np.float64)
    centre = head.joints[JAW_JOINT].astype(np.float64)
    of_joint = gather(np.ones_like(head.template), jaw)  # (L, 3): skinning weight of the jaw joint
    by_joint = head.joint_shape_dirs[:, JAW_JOINT, None, :] * of_joint  # (S, L, 3)
    no_correctives = np.zeros((9, *head.template.shape))
    correctives = no_correctives if head.pose_dirs is None else head.pose_dirs[9 * (JAW_JOINT - 1) : 9 * JAW_JOINT]
    return LandmarkBasis(
        base=gather(head.template, 1 - jaw) + of_joint * centre,
        directions=lead(gather(moves, 1 - jaw)),
        shape_directions=lead(gather(head.shape_dirs, 1 - jaw) + by_joint),
        turning=gather(head.template, jaw) - of_joint * centre,
        turning_directions=lead(gather(moves, jaw)),
        turning_shape_directions=lead(gather(head.shape_dirs, jaw) - by_joint),
        correctives=gather(correctives, 1 - jaw),
        turning_correctives=gather(correctives, jaw),
        **common,
    )


def _priors(head: HeadModel) -> UnitPriors:
    if head.basis != "flame":
        names = head.expression_names
        # MediaPipe has no tongue score and no landmark on the tongue, so the unit stays at zero.
        high = np.array([0.0 if name == "tongueOut" else 1.0 for name in names])
        units = len(names)
        return UnitPriors(
            tuple(names), np.full(units, SCORE_WEIGHT), np.full(units, TEMPORAL_WEIGHT), np.zeros(units), high
        )
    units = min(PCA_COMPONENTS, len(head.expression_dirs))
    lids, pad = ("eyeBlinkLeft", "eyeBlinkRight"), np.ones(2)
    return UnitPriors(
        (*(None,) * units, *lids),
        np.concatenate([np.full(units, PCA_WEIGHT), SCORE_WEIGHT * pad]),
        np.concatenate([np.full(units, PCA_TEMPORAL_WEIGHT), TEMPORAL_WEIGHT * pad]),
        np.concatenate([np.full(units, -3.0), 0.0 * pad]),
        np.concatenate([np.full(units, 3.0), pad]),
    )


def _vertex_normals(vertices: Float32, faces: NDArray[np.int64]) -> Float64:
    corners = vertices[faces].astype(np.float64)
    of_face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros(vertices.shape)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], of_face)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)

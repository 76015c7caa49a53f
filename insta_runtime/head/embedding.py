"""Positions of MediaPipe's 478 face landmarks on a head mesh."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insta_runtime.types import Float32

LANDMARKS = 478
"""Number of landmarks of MediaPipe's Face Landmarker: 468 of the face, then 5 of each iris."""


@dataclass(frozen=True)
class LandmarkEmbedding:
    """Landmarks of MediaPipe's Face Landmarker as points on the triangles of a head mesh.

    Attributes (L = 478):
        face: (L,) int32 index of the landmark's triangle; -1 for landmarks without one (the irises).
        bary: (L, 3) float32 barycentric coordinates in that triangle; rows sum to 1.
        sd: (L,) float32 standard deviation in metres of the position on the surface over identities and views.
        keep: (L,) bool, whether the landmark is stable enough for fitting.
        weight: (L,) float32 relative weight in a fit; zero for landmarks that are not kept.
    """

    face: NDArray[np.int32]
    bary: Float32
    sd: Float32
    keep: NDArray[np.bool_]
    weight: Float32

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of all fields by name of the field."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def points(self, vertices: NDArray[Any], faces: NDArray[np.int64]) -> NDArray[Any]:
        """Landmark positions (..., L, 3) on the mesh of ``vertices`` (..., V, 3) and ``faces`` (F, 3), in their unit.

        Undefined for landmarks whose ``face`` is -1.
        """
        corners = vertices[..., faces[self.face], :]
        return (corners * self.bary[..., None]).sum(-2)

"""Triangle frames and the linear maps from the posed to the canonical mesh.

Per triangle k with corners (a, b, c) the frame is ``R = [tangent | bitangent | normal]`` and the length scale
``s = sqrt(area)``.  The linear part of the map canonical <- posed is ``(s_C / s_D) R_C R_D^T`` (INSTA, section
"deformation", with a length ratio where the paper has an area ratio, which `WarpConfig.scale` = "area" restores).
`CanonicalMaps.average` averages it over the triangles around each vertex, so that a map interpolated over the surface
has no seam at any edge.
"""

from __future__ import annotations

import torch

SCALES = ("length", "area", "none")
"""Values of `WarpConfig.scale`, in the order of the constants of cuda/frames.cu: maps scale by the ratio of lengths, by
the ratio of areas (around the eyes only), or not at all."""
LARGEST_SCALE = 2.0
"""Maximum length scale, so that a triangle that the pose squashes (a closed lid) does not enlarge its surroundings."""
DEGENERATE_AREA = 1e-12
"""Twice the area in m^2 below which a triangle gets the identity as its frame."""


def triangle_frames(vertices: torch.Tensor, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal frames and areas of the triangles of a mesh.

    Args:
        vertices: (V, 3) float, metres.
        faces: (F, 3) int64.

    Returns:
        frames (F, 3, 3) with columns tangent (along the first edge), bitangent, normal (outward), right-handed;
        areas (F,) in m^2.  A triangle without area gets the identity frame.
    """
    a, b, c = vertices[faces].unbind(1)
    edge, other = b - a, c - a
    normal = torch.linalg.cross(edge, other)
    double_area = normal.norm(dim=-1)
    tangent = torch.nn.functional.normalize(edge, dim=-1)
    normal = torch.nn.functional.normalize(normal, dim=-1)
    frames = torch.stack([tangent, torch.linalg.cross(normal, tangent), normal], dim=-1)
    flat = double_area < DEGENERATE_AREA
    identity = torch.eye(3, dtype=vertices.dtype, device=vertices.device)
    return torch.where(flat[:, None, None], identity, frames), 0.5 * double_area


class CanonicalMaps:
    """Linear maps from a posed mesh to its canonical mesh, for each triangle and each vertex, in any pose.

    Args:
        canonical: (V, 3) float, vertices of the canonical mesh, metres.
        faces: (F, 3) int64.
        scale: one of `SCALES`.
        eyes: (F,) bool, triangles around the eyes, where the scale "area" applies; None for no triangle.

    Attributes:
        frames: (F, 3, 3) frames of the canonical triangles, as from `triangle_frames`.
        areas: (F,) areas of the canonical triangles, m^2.
    """

    def __init__(
        self,
        canonical: torch.Tensor,
        faces: torch.Tensor,
        scale: str = "length",
        eyes: torch.Tensor | None = None,
    ) -> None:
        self.faces, self._scale = faces, scale
        self._eyes = faces.new_zeros(len(faces), dtype=torch.bool) if eyes is None else eyes
        self.frames, self.areas = triangle_frames(canonical, faces)
        counts = torch.zeros(len(canonical), dtype=canonical.dtype, device=canonical.device)
        corner = faces.reshape(-1)
        self._weight = self.areas.repeat_interleave(3)
        counts.index_add_(0, corner, self._weight)
        self._total = counts.clamp_min(1e-20)

    def triangle_maps(self, posed: torch.Tensor) -> torch.Tensor:
        """Linear map from posed to canonical space of each triangle: (F, 3, 3), from ``posed`` vertices (V, 3)."""
        frames, areas = triangle_frames(posed, self.faces)
        return self._scales(areas)[:, None, None] * (self.frames @ frames.transpose(1, 2))

    def _scales(self, areas: torch.Tensor) -> torch.Tensor:
        """Scale (F,) of each triangle's map, from its posed area (F,)."""
        ratio = self.areas / areas.clamp_min(1e-14)
        if self._scale == "length":
            return ratio.sqrt().clamp(1.0 / LARGEST_SCALE, LARGEST_SCALE)
        if self._scale == "area":  # INSTA has no bounds, and diverges at closed lids
            return torch.where(self._eyes, ratio.clamp(LARGEST_SCALE**-2, LARGEST_SCALE**2), 1.0)
        return torch.ones_like(ratio)

    def average(self, triangle_maps: torch.Tensor) -> torch.Tensor:
        """Vertex maps (V, 3, 3): triangle maps (F, 3, 3) averaged around each vertex, weighted by canonical area."""
        maps = triangle_maps.reshape(-1, 9).repeat_interleave(3, dim=0) * self._weight[:, None]
        total = torch.zeros((len(self._total), 9), dtype=maps.dtype, device=maps.device)
        total.index_add_(0, self.faces.reshape(-1), maps)
        return (total / self._total[:, None]).reshape(-1, 3, 3)

"""Posed <-> canonical: a sample rides with the point of the head mesh that is nearest to it.

A point p of posed head space has the nearest surface point ``q = sum_i b_i v_i`` on triangle (v_0, v_1, v_2).  Its
canonical position is ``sum_i b_i c_i + M (p - q)``, where c are the canonical vertices and ``M = sum_i b_i M_i`` blends
the vertex maps of `frames.CanonicalMaps`.  On the surface this is exact; off it, it is continuous across edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from insta_runtime.config import WarpConfig
from insta_runtime.types import HeadMesh
from insta_runtime.warp.frames import CanonicalMaps
from insta_runtime.warp.nearest import CandidateGrid, TriangleLeaves, TriangleSoup

SUBCELLS = 3  # a canonical cell is carried to a pose by SUBCELLS^3 points, its corners included: no holes, no clipping


@dataclass(frozen=True)
class Box:
    """A cube in head space: lower corner ``origin`` (3,) and ``side``, metres."""

    origin: torch.Tensor
    side: float

    def normalise(self, points: torch.Tensor) -> torch.Tensor:
        """Head space (N, 3) metres -> [0, 1] inside the box."""
        return (points - self.origin) / self.side

    def cell_centres(self, index: torch.Tensor, resolution: int) -> torch.Tensor:
        """Centres (N, 3) in metres of flat cells ((z * n + y) * n + x) of an n^3 grid over the box."""
        n = resolution
        xyz = torch.stack([index % n, index // n % n, index // (n * n)], dim=-1)
        return self.origin + (xyz + 0.5) * (self.side / n)

    def cell_of(self, points: torch.Tensor, resolution: int) -> torch.Tensor:
        """Flat cells (N,) int64 of (N, 3) points in metres, clamped into the box."""
        xyz = (self.normalise(points) * resolution).long().clamp(0, resolution - 1)
        return (xyz[:, 2] * resolution + xyz[:, 1]) * resolution + xyz[:, 0]


@dataclass(frozen=True)
class CanonicalSamples:
    """Samples in canonical space.

    Attributes:
        position: (N, 3) metres, canonical head space.
        direction: (N, 3) unit, the view direction turned with the surface.
        masks: (N, 2) in [0, 1], how much the mouth's and the eyes' code count here.
        distance: (N,) metres to the posed surface, unsigned.
    """

    position: torch.Tensor
    direction: torch.Tensor
    masks: torch.Tensor
    distance: torch.Tensor


class HeadWarp:
    """What the warp knows of one identity, for every pose.

    Args:
        canonical: the canonical mesh, head space.
        neutral: (V, 3) vertices of the neutral face, which most poses resemble.
        masks: (V, 2) float in [0, 1], the vertices that follow the mouth's and the eyes' code.
        config: cell size, candidates, band.
        padding: metres around the canonical mesh that the volume covers (hair, ears, headphones).
    """

    def __init__(
        self,
        canonical: HeadMesh,
        neutral: torch.Tensor,
        masks: torch.Tensor,
        config: WarpConfig,
        padding: float = 0.09,
    ) -> None:
        self.config, self.canonical, self.neutral, self.masks = config, canonical, neutral, masks
        self.maps = CanonicalMaps(canonical.vertices, canonical.faces)
        self.leaves = TriangleLeaves(canonical.vertices, canonical.faces)
        lower, upper = canonical.vertices.amin(0) - padding, canonical.vertices.amax(0) + padding
        side = float((upper - lower).max())
        self.box = Box((lower + upper - side) / 2.0, side)
        self.resolution = round(side / config.cell)

    def pose(self, vertices: torch.Tensor) -> PosedHead:
        """The warp of one pose, from (V, 3) posed vertices in head space."""
        return PosedHead(self, vertices)

    def candidate_grid(
        self, soup: TriangleSoup, wanted: torch.Tensor, resolution: int, still: CandidateGrid | None = None
    ) -> CandidateGrid:
        """Candidates for the ``wanted`` flat cells of a ``resolution``^3 grid over the box."""
        cell = self.box.side / resolution
        count = self.config.candidates
        return CandidateGrid(soup, self.leaves, self.box.origin, cell, resolution, wanted, count, still)

    @cached_property
    def still(self) -> CandidateGrid:
        """Candidates of the neutral face in every cell: what poses take over where nothing moved."""
        soup = TriangleSoup(self.neutral, self.canonical.faces)
        everywhere = torch.arange(self.resolution**3, device=self.box.origin.device)
        return self.candidate_grid(soup, everywhere, self.resolution)


class PosedHead:
    """The warp of one posed mesh: carries canonical cells to the pose, and posed points to canonical space."""

    def __init__(self, warp: HeadWarp, vertices: torch.Tensor) -> None:
        self.warp, self.vertices = warp, vertices
        self.triangle_maps = warp.maps.triangle_maps(vertices)
        self.vertex_maps = warp.maps.average(self.triangle_maps)
        self.soup = TriangleSoup(vertices, warp.canonical.faces)
        self._grid: CandidateGrid | None = None
        self._covered: torch.Tensor | None = None

    def carry(self, points: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
        """Canonical points to the pose, each rigidly with its triangle, metres.

        ``points`` (N, K, 3) are K points that ride with each of ``triangle`` (N,).
        """
        corner = self.warp.canonical.faces[triangle, 0]
        linear = self.triangle_maps[triangle]
        # The map is a rotation times a scale s, so its inverse is its transpose over s^2.
        squared_scale = linear.square().sum(dim=(1, 2), keepdim=True) / 3.0
        offset = points - self.warp.canonical.vertices[corner, None]
        return torch.baddbmm(self.vertices[corner, None], offset, linear / squared_scale)

    def occupied_cells(self, points: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
        """Cells of the posed grid that carried canonical points (N, K, 3) reach: (resolution^3,) bool."""
        resolution = self.warp.resolution
        cells = torch.zeros(resolution**3, dtype=torch.bool, device=points.device)
        carried = self.carry(points, triangle).reshape(-1, 3)
        cells[self.warp.box.cell_of(carried, resolution)] = True
        return cells

    def prepare(self, cells: torch.Tensor) -> None:
        """Make candidates for the posed ``cells`` ((resolution^3,) bool) that samples will come from."""
        if self._covered is None or bool((cells & ~self._covered).any()):
            self._covered = cells
            warp = self.warp
            self._grid = warp.candidate_grid(self.soup, cells.nonzero()[:, 0], warp.resolution, warp.still)

    def to_canonical(self, points: torch.Tensor, directions: torch.Tensor) -> CanonicalSamples:
        """Carry posed samples to canonical space; `prepare` must have covered their cells.

        Args:
            points: (N, 3) metres, head space of the pose.
            directions: (N, 3) unit view directions there.
        """
        assert self._grid is not None
        nearest = self._grid.query(points)
        corner = self.warp.canonical.faces[nearest.triangle]
        b = nearest.barycentrics[:, :, None]
        surface = (self.vertices[corner] * b).sum(dim=1)
        canonical = (self.warp.canonical.vertices[corner] * b).sum(dim=1)
        linear = (self.vertex_maps[corner] * b[..., None]).sum(dim=1)
        position = canonical + torch.einsum("nij,nj->ni", linear, points - surface)
        direction = torch.nn.functional.normalize(torch.einsum("nij,nj->ni", linear, directions), dim=-1)
        masks = (self.warp.masks[corner] * b).sum(dim=1) * fade(nearest.distance)[:, None]
        return CanonicalSamples(position, direction, masks, nearest.distance)


def fade(distance: torch.Tensor) -> torch.Tensor:
    """How much of the expression code is left at a distance (metres) from the surface: 1 to 0 over 2 cm."""
    return (1.0 - distance / 0.02).clamp(0.0, 1.0)

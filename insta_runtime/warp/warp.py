"""Warp between a posed head and canonical space: a sample follows the nearest point of the head mesh.

Inverse warp (posed -> canonical).  A point p in posed head space has the nearest surface point ``q = sum_i b_i v_i`` on
the triangle (v_0, v_1, v_2).  Its canonical position is ``sum_i b_i c_i + M (p - q)``, where c are the canonical
vertices and ``M = sum_i b_i M_i`` blends the vertex maps of `frames.CanonicalMaps`.  This is exact on the surface and
continuous across edges off it.  Points farther above the surface (hair, glasses) follow the rigid motion of the head
only, not brows and cheeks (`WarpConfig.loosens`, `attachment`).

With another `WarpConfig.blend` the warp is that of INSTA: ``F p`` with the map F of the nearest triangle, which on the
face is averaged with those of the neighbouring triangles, weighted by ``exp(-d)`` and, for neighbours, ``exp(-4 d)`` of
the distances d in metres to the centroids (INSTA, section "deformation"; INSTA's code averages frames of both spaces
instead of maps, which depends on the order of the corners, and weights those of the canonical space by other distances:
this is left out).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from insta_runtime.config import WarpConfig
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import HeadMesh
from insta_runtime.warp.frames import CanonicalMaps
from insta_runtime.warp.nearest import CandidateGrid, Nearest, TriangleLeaves, TriangleSoup
from insta_runtime.warp.regions import EYES, FACE, LIPS, OTHER, edge_neighbours

BLENDS = ("surface", "neighbours", "triangle")
"""Values of `WarpConfig.blend`, in the order of the constants of cuda/warp.cuh: vertex maps interpolated over the
surface; maps of the nearest triangle and its neighbours, averaged; map of the nearest triangle alone."""
OWN_DECAY, NEIGHBOURS_DECAY = 1.0, 4.0
"""Decay of the weights of the nearest triangle and of its neighbours with distance, 1 / metre."""
FULLY_ATTACHED = 0.25
"""Height above the surface, as a share of `WarpConfig.loosens`, up to which a sample follows the surface completely."""
MAX_POSED_COPIES = 6
"""Maximum number of positions in the posed grid at which one canonical cell is marked as occupied, from the position
that follows the surface to the one that follows the rigid head."""
PARTS = 2
"""Number of parts of the face with motions of their own: mouth and eyes, in the order of `CanonicalSamples.masks`."""
MOTION = 6
"""Length of the vector of a small rigid motion: translations along x, y and z of head space in metres, then rotations
about these axes in radians times TURN_RADIUS."""
TURN_RADIUS = 0.1
"""Radius in metres by which the rotations of a motion are multiplied, so that all its numbers are lengths."""
SUBCELLS = 3
"""Number of points per axis, corners included, at which a canonical cell is warped to a pose without gaps."""


@dataclass(frozen=True)
class Box:
    """Axis-aligned cube in head space: lower corner ``origin`` (3,) and edge length ``side``, metres."""

    origin: torch.Tensor
    side: float

    def normalise(self, points: torch.Tensor) -> torch.Tensor:
        """Coordinates in the unit cube of points (N, 3) of head space in metres: in [0, 1] inside the box."""
        return (points - self.origin) / self.side

    def cell_centres(self, index: torch.Tensor, resolution: int) -> torch.Tensor:
        """Centres (N, 3) in metres of cells with flat indices ((z * n + y) * n + x) of an n^3 grid over the box."""
        n = resolution
        xyz = torch.stack([index % n, index // n % n, index // (n * n)], dim=-1)
        return self.origin + (xyz + 0.5) * (self.side / n)

    def cell_of(self, points: torch.Tensor, resolution: int) -> torch.Tensor:
        """Flat cell indices (N,) int64 of points (N, 3) in metres, clamped into the box."""
        return flat_cell(self.normalise(points), resolution)


def flat_cell(unit: torch.Tensor, resolution: int) -> torch.Tensor:
    """Flat cell indices ((z * n + y) * n + x), (N,) int64, of points (N, 3) in the unit cube, clamped into it."""
    x, y, z = (unit * resolution).long().clamp(0, resolution - 1).unbind(-1)
    return (z * resolution + y) * resolution + x


@dataclass(frozen=True)
class CanonicalSamples:
    """Samples after the inverse warp, in canonical space.

    Attributes:
        position: (N, 3) positions in canonical head space, metres.
        direction: (N, 3) unit view directions, rotated with the surface.
        masks: (N, 2) weights in [0, 1] of the mouth code and the eye code.
        distance: (N,) unsigned distances to the posed surface, metres.
    """

    position: torch.Tensor
    direction: torch.Tensor
    masks: torch.Tensor
    distance: torch.Tensor


class HeadWarp:
    """Warp between posed and canonical head space of one subject: the data that all poses share.

    These are the canonical mesh, its bounding box, the masks and the acceleration structures; `pose` adds a posed mesh.

    Args:
        canonical: canonical mesh in head space.
        neutral: (V, 3) vertices of the neutral face, metres.
        masks: (V, 2) float in [0, 1], weights of mouth code and eye code at the vertices.
        config: configuration of the warp.
        padding: margin in metres around the canonical mesh that the box covers (hair, ears, headphones).
        regions: (F,) int64 of `regions.triangle_regions`; None for a head without regions.
        lips: use a mouth mask that is one where the nearest triangle is one of the lips and zero elsewhere.
    """

    def __init__(
        self,
        canonical: HeadMesh,
        neutral: torch.Tensor,
        masks: torch.Tensor,
        config: WarpConfig,
        padding: float = 0.09,
        regions: torch.Tensor | None = None,
        lips: bool = False,
    ) -> None:
        self.config, self.canonical, self.neutral, self.masks = config, canonical, neutral, masks
        self.regions = torch.full_like(canonical.faces[:, 0], OTHER) if regions is None else regions
        self.lips = lips
        self.neighbours = edge_neighbours(canonical.faces)
        self.maps = CanonicalMaps(canonical.vertices, canonical.faces, config.scale, self.regions == EYES)
        self.detachment_height = detachment_height(config)
        self.jaw_offset = canonical.vertices - neutral  # from opening the canonical mouth
        self.leaves = TriangleLeaves(canonical.vertices, canonical.faces)
        lower, upper = canonical.vertices.amin(0) - padding, canonical.vertices.amax(0) + padding
        side = float((upper - lower).max())
        self.box = Box((lower + upper - side) / 2.0, side)
        self.resolution = round(side / config.cell)

    def pose(self, vertices: torch.Tensor, part_motions: torch.Tensor | None = None) -> PosedHead:
        """Warp of one pose, given the posed ``vertices`` (V, 3) in head space in metres.

        ``part_motions`` (PARTS, MOTION) are small motions of mouth and eyes as for `PosedHead`; zero if None.
        """
        return PosedHead(self, vertices, part_motions)

    def masks_at(self, nearest: Nearest) -> torch.Tensor:
        """Weights (N, 2) in [0, 1] of mouth code and eye code at N points, from their ``nearest`` surface points."""
        if self.lips:
            mouth = (self.regions[nearest.triangle] == LIPS).to(self.masks.dtype)
            return torch.stack([mouth, torch.zeros_like(mouth)], dim=-1)
        corner = self.canonical.faces[nearest.triangle]
        masks = (self.masks[corner] * nearest.barycentrics[:, :, None]).sum(dim=1)
        return masks * code_fade(nearest.distance)[:, None]

    def candidate_grid(
        self, soup: TriangleSoup, wanted: torch.Tensor, resolution: int, reference: CandidateGrid | None = None
    ) -> CandidateGrid:
        """Candidate triangles for the cells with flat indices ``wanted`` (C,) of a ``resolution``^3 grid over the box.

        ``soup`` holds the triangles of the pose.  ``reference`` is the grid of another pose whose candidates are reused
        where the mesh has hardly moved; None computes all.
        """
        cell = self.box.side / resolution
        count = self.config.candidates
        return CandidateGrid(soup, self.leaves, self.box.origin, cell, resolution, wanted, count, reference)

    @cached_property
    def neutral_grid(self) -> CandidateGrid:
        """Candidate triangles of the neutral face for every cell, the ``reference`` of the grids of all poses."""
        soup = TriangleSoup(self.neutral, self.canonical.faces)
        everywhere = torch.arange(self.resolution**3, device=self.box.origin.device)
        return self.candidate_grid(soup, everywhere, self.resolution)


class PosedHead:
    """Warp of one posed mesh: forward warp (canonical -> posed) of cells, inverse warp (posed -> canonical) of samples.

    Attributes:
        vertices: (V, 3) posed vertices in head space, metres.
        part_motions: (PARTS, MOTION) small motions of samples of mouth and eyes, weighted by their masks.
    """

    def __init__(self, warp: HeadWarp, vertices: torch.Tensor, part_motions: torch.Tensor | None = None) -> None:
        self.warp, self.vertices = warp, vertices
        self.part_motions = vertices.new_zeros((PARTS, MOTION)) if part_motions is None else part_motions
        self.triangle_maps = warp.maps.triangle_maps(vertices)
        self.vertex_maps = warp.maps.average(self.triangle_maps)
        self.soup = TriangleSoup(vertices, warp.canonical.faces)
        self._grid: CandidateGrid | None = None
        self._covered: torch.Tensor | None = None

    def forward_warp(self, points: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
        """Warp canonical points (N, K, 3) to the pose by the similarity transforms of triangles.

        The K points of row i follow the triangle with the index ``triangle[i]`` (N,).  Returns posed points (N, K, 3)
        in head space, metres.
        """
        corner = self.warp.canonical.faces[triangle, 0]
        linear = self.triangle_maps[triangle]
        # The map is a rotation times a scale s, so its inverse is its transpose over s^2.
        squared_scale = linear.square().sum(dim=(1, 2), keepdim=True) / 3.0
        offset = points - self.warp.canonical.vertices[corner, None]
        return torch.baddbmm(self.vertices[corner, None], offset, linear / squared_scale)

    def forward_warp_centres(self, points: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
        """Warp canonical points (N, 3) to the pose: positions (N, 3) in head space, metres.

        Points near the surface follow the triangle with the index ``triangle`` (N,); points high above it (hair) follow
        the rigid motion of the head, and points between them blend both (`attachment`).
        """
        posed = self.forward_warp(points[:, None], triangle)[:, 0]
        if self.warp.detachment_height == 0.0:
            return posed
        corner = self.warp.canonical.faces[triangle, 0]
        height, mouth = self._height(points, triangle), self.warp.masks[corner, 0]
        loose = 1.0 - attachment(height.clamp_min(0.0), mouth, self.warp.detachment_height)
        return posed + loose[:, None] * (points - self.warp.jaw_offset[corner] - posed)

    def _height(self, points: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
        """Signed heights (N,) in metres of canonical points (N, 3) above the planes of their triangles (N,)."""
        corner = self.warp.canonical.vertices[self.warp.canonical.faces[triangle, 0]]
        return ((points - corner) * self.warp.maps.frames[triangle][:, :, 2]).sum(dim=-1)

    def occupied_cells(self, points: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
        """Cells of the posed grid into which canonical points (N, K, 3) are warped: (resolution^3,) bool by flat index.

        The K points of each row cover one canonical cell, which moves with the triangle ``triangle`` (N,); the middle
        one is its centre.  A cell above the surface is marked at several positions between following the surface and
        following the rigid head, because samples at different heights follow the surface to different degrees.
        """
        warp = self.warp
        resolution, corner = warp.resolution, warp.canonical.faces[triangle, 0]
        cells = torch.zeros(resolution**3, dtype=torch.bool, device=points.device)
        posed = self.forward_warp(points, triangle)
        middle = points.shape[1] // 2
        centres = points[:, middle]
        detached = centres - warp.jaw_offset[corner] - posed[:, middle]
        loose = (self._height(centres, triangle) > 0.0) & (warp.masks[corner, 0] < 1.0) & (warp.detachment_height > 0.0)
        distance = detached.norm(dim=-1) * (resolution / warp.box.side)
        copies = torch.where(loose, (distance.long() + 2).clamp_max(MAX_POSED_COPIES), 1)
        for copy in range(int(copies.max()) if len(copies) else 0):
            found = copies > copy
            share = copy / (copies[found] - 1).clamp_min(1)
            moved = posed[found] + (share[:, None] * detached[found])[:, None]
            cells[warp.box.cell_of(moved.reshape(-1, 3), resolution)] = True
        return cells

    def prepare(self, cells: torch.Tensor) -> None:
        """Compute candidate triangles for the posed ``cells`` (resolution^3,) bool; required before `to_canonical`.

        Does nothing if they are known for all of these cells.
        """
        if self._covered is None or bool((cells & ~self._covered).any()):
            self._covered = cells
            warp = self.warp
            self._grid = warp.candidate_grid(self.soup, cells.nonzero()[:, 0], warp.resolution, warp.neutral_grid)

    def to_canonical(self, points: torch.Tensor, directions: torch.Tensor) -> CanonicalSamples:
        """Warp posed samples to canonical space; `prepare` must have been called with their cells.

        Args:
            points: (N, 3) samples in head space of the pose, metres.
            directions: (N, 3) unit view directions in the same space.
        """
        assert self._grid is not None
        return self.inverse_warp(points, directions, self._grid.query(points))

    def inverse_warp(self, points: torch.Tensor, directions: torch.Tensor, nearest: Nearest) -> CanonicalSamples:
        """Warp posed samples to canonical space as `to_canonical` does, given their ``nearest`` surface points."""
        if self.warp.config.blend == "surface":
            position, linear = self._over_surface(points, nearest)
        else:
            position, linear = self._with_triangles(points, nearest.triangle)
        direction = torch.nn.functional.normalize(torch.einsum("nij,nj->ni", linear, directions), dim=-1)
        masks = self.warp.masks_at(nearest)
        for part, motion in enumerate(self.part_motions):
            position = position + masks[:, part, None] * displacements(motion, points)
        return CanonicalSamples(position, direction, masks, nearest.distance)

    def _over_surface(self, points: torch.Tensor, nearest: Nearest) -> tuple[torch.Tensor, torch.Tensor]:
        """Canonical positions (N, 3) and linear parts (N, 3, 3) of the maps, with maps blended over the surface."""
        corner = self.warp.canonical.faces[nearest.triangle]
        b = nearest.barycentrics[:, :, None]
        surface = (self.vertices[corner] * b).sum(dim=1)
        canonical = (self.warp.canonical.vertices[corner] * b).sum(dim=1)
        linear = (self.vertex_maps[corner] * b[..., None]).sum(dim=1)
        position = canonical + torch.einsum("nij,nj->ni", linear, points - surface)
        if self.warp.detachment_height == 0.0:
            return position, linear
        first, second, third = self.vertices[corner].unbind(dim=1)
        above = (torch.linalg.cross(second - first, third - first) * (points - surface)).sum(dim=-1) > 0.0
        mouth = (self.warp.masks[corner] * b).sum(dim=1)[:, 0]
        loose = torch.where(above, 1.0 - attachment(nearest.distance, mouth, self.warp.detachment_height), 0.0)[:, None]
        rigid = points + (self.warp.jaw_offset[corner] * b).sum(dim=1)
        identity = torch.eye(3, device=points.device)
        return position + loose * (rigid - position), linear + loose[..., None] * (identity - linear)

    def _with_triangles(self, points: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Canonical positions and linear parts, with the maps of the nearest triangles (N,) and their neighbours."""
        warp = self.warp
        triangles = torch.cat([own[:, None], warp.neighbours[own]], dim=1)
        corner = warp.canonical.faces[triangles, 0]
        counts = triangles != own[:, None]
        counts &= (warp.regions[own] == FACE)[:, None] & (warp.config.blend == "neighbours")
        counts[:, 0] = True
        decay = torch.tensor([OWN_DECAY] + [NEIGHBOURS_DECAY] * 3, device=points.device)
        away = (points[:, None] - self.soup.centre[triangles]).norm(dim=-1)
        weight = torch.exp(-decay * away) * counts
        weight /= weight.sum(dim=1, keepdim=True)
        linear = self.triangle_maps[triangles]
        offset = points[:, None] - self.vertices[corner]
        moved = warp.canonical.vertices[corner] + torch.einsum("nkij,nkj->nki", linear, offset)
        return (moved * weight[..., None]).sum(dim=1), (linear * weight[..., None, None]).sum(dim=1)


def displacements(motion: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """First-order displacement (N, 3) in metres of points (N, 3) in head space by a small rigid ``motion``."""
    return motion[:3] + torch.linalg.cross(motion[None, 3:] / TURN_RADIUS, points)


def detachment_height(config: WarpConfig) -> float:
    """Height in metres above the surface from which samples follow only the rigid motion of the head.

    It is `WarpConfig.loosens` with the blend "surface", else 0: samples then follow the surface at any height.
    """
    return config.loosens if config.blend == "surface" else 0.0


def attachment(distance: torch.Tensor, mouth: torch.Tensor, reach: float) -> torch.Tensor:
    """Weight (N,) in [0, 1] of the surface's motion for samples at a ``distance`` (N,) in metres above the surface.

    It is 1 near the skin and where the mouth mask ``mouth`` (N,) is 1, and falls to 0 at ``reach`` metres; the rigid
    motion of the head has the remaining weight.
    """
    return 1.0 - smoothstep(distance / reach, FULLY_ATTACHED, 1.0) * (1.0 - mouth)


def code_fade(distance: torch.Tensor) -> torch.Tensor:
    """Weight (N,) of the expression code at a ``distance`` (N,) from the surface, linear from 1 at 0 to 0 at 2 cm."""
    return (1.0 - distance / 0.02).clamp(0.0, 1.0)

"""Posed <-> canonical: a sample rides with the point of the head mesh that is nearest to it.

A point p of posed head space has the nearest surface point ``q = sum_i b_i v_i`` on triangle (v_0, v_1, v_2).  Its
canonical position is ``sum_i b_i c_i + M (p - q)``, where c are the canonical vertices and ``M = sum_i b_i M_i`` blends
the vertex maps of `frames.CanonicalMaps`.  On the surface this is exact; off it, it is continuous across edges.
What is farther above the surface lets go of it: hair and glasses do not follow brows and cheeks, but the head alone
(`WarpConfig.loosens`, `held`).

With `WarpConfig.blend` the warp is the original's instead: ``F p`` with the map F of the nearest triangle, which on the
face is averaged with those of the triangles beyond its edges, weighted by ``exp(-d)`` and, theirs, ``exp(-4 d)`` of the
metres d to the centroids (INSTA, section "deformation"; its code averages frames of either space instead of maps, which
depends on the order of the corners, and weights those of the canonical one by other distances: that is left out).
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

BLENDS = ("surface", "neighbours", "triangle")  # of `WarpConfig.blend`, in the order of cuda/warp.cuh
OWN_DECAY, NEIGHBOURS_DECAY = 1.0, 4.0  # 1 / metre, of the weights of triangles around the nearest one
HELD_WHOLLY = 0.25  # part of `WarpConfig.loosens` within which a sample rides with the surface as it is
MOST_WAYS = 6  # places between where the surface takes a cell and where the head alone does
PARTS = 2  # of the face that move apart from the head: mouth and eyes, as `CanonicalSamples.masks` has them
MOTION = 6  # of a small motion: metres along x, y, z in head space, then a turn about them, in metres at LEVER
LEVER = 0.1  # metres
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
        return flat_cell(self.normalise(points), resolution)


def flat_cell(unit: torch.Tensor, resolution: int) -> torch.Tensor:
    """Flat cells ((z * n + y) * n + x), (N,) int64, of points (N, 3) in the unit cube, clamped into it."""
    x, y, z = (unit * resolution).long().clamp(0, resolution - 1).unbind(-1)
    return (z * resolution + y) * resolution + x


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
        regions: (F,) int64, `regions.triangle_regions`; None is a head without any.
        lips: the mouth's mask is one where the nearest triangle is of the lips, else zero, instead of ``masks``.
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
        self.loosens = loosens(config)
        self.opened = canonical.vertices - neutral  # of the mouth, which is open in canonical space
        self.leaves = TriangleLeaves(canonical.vertices, canonical.faces)
        lower, upper = canonical.vertices.amin(0) - padding, canonical.vertices.amax(0) + padding
        side = float((upper - lower).max())
        self.box = Box((lower + upper - side) / 2.0, side)
        self.resolution = round(side / config.cell)

    def pose(self, vertices: torch.Tensor, apart: torch.Tensor | None = None) -> PosedHead:
        """The warp of one pose, from (V, 3) posed vertices in head space; ``apart`` is that of `PosedHead`."""
        return PosedHead(self, vertices, apart)

    def masks_at(self, nearest: Nearest) -> torch.Tensor:
        """How much the mouth's and the eyes' code count at points of which this is nearest: (N, 2) in [0, 1]."""
        if self.lips:
            mouth = (self.regions[nearest.triangle] == LIPS).to(self.masks.dtype)
            return torch.stack([mouth, torch.zeros_like(mouth)], dim=-1)
        corner = self.canonical.faces[nearest.triangle]
        masks = (self.masks[corner] * nearest.barycentrics[:, :, None]).sum(dim=1)
        return masks * fade(nearest.distance)[:, None]

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
    """The warp of one posed mesh: carries canonical cells to the pose, and posed points to canonical space.

    Attributes:
        apart: (PARTS, MOTION) small motions by which samples of mouth and eyes are moved, as far as their masks go.
    """

    def __init__(self, warp: HeadWarp, vertices: torch.Tensor, apart: torch.Tensor | None = None) -> None:
        self.warp, self.vertices = warp, vertices
        self.apart = vertices.new_zeros((PARTS, MOTION)) if apart is None else apart
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

    def carry_centres(self, points: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
        """Canonical points (N, 3) to the pose, (N, 3): each with its ``triangle`` as far as it holds them."""
        carried = self.carry(points[:, None], triangle)[:, 0]
        if self.warp.loosens == 0.0:
            return carried
        corner = self.warp.canonical.faces[triangle, 0]
        height, mouth = self._height(points, triangle), self.warp.masks[corner, 0]
        loose = 1.0 - held(height.clamp_min(0.0), mouth, self.warp.loosens)
        return carried + loose[:, None] * (points - self.warp.opened[corner] - carried)

    def _height(self, points: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
        """Metres of canonical points (N, 3) above the planes of their triangles (N,)."""
        corner = self.warp.canonical.vertices[self.warp.canonical.faces[triangle, 0]]
        return ((points - corner) * self.warp.maps.frames[triangle][:, :, 2]).sum(dim=-1)

    def occupied_cells(self, points: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
        """Cells of the posed grid that carried canonical points (N, K, 3) reach: (resolution^3,) bool.

        The K points of each row surround a cell, whose centre is the middle one.  What is above the surface may be
        anywhere between where the surface takes it and where the head alone does.
        """
        warp = self.warp
        resolution, corner = warp.resolution, warp.canonical.faces[triangle, 0]
        cells = torch.zeros(resolution**3, dtype=torch.bool, device=points.device)
        carried = self.carry(points, triangle)
        middle = points.shape[1] // 2
        centres = points[:, middle]
        apart = centres - warp.opened[corner] - carried[:, middle]
        loose = (self._height(centres, triangle) > 0.0) & (warp.masks[corner, 0] < 1.0) & (warp.loosens > 0.0)
        distance = apart.norm(dim=-1) * (resolution / warp.box.side)
        ways = torch.where(loose, (distance.long() + 2).clamp_max(MOST_WAYS), 1)
        for way in range(int(ways.max()) if len(ways) else 0):
            found = ways > way
            share = way / (ways[found] - 1).clamp_min(1)
            moved = carried[found] + (share[:, None] * apart[found])[:, None]
            cells[warp.box.cell_of(moved.reshape(-1, 3), resolution)] = True
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
        return self.ride(points, directions, self._grid.query(points))

    def ride(self, points: torch.Tensor, directions: torch.Tensor, nearest: Nearest) -> CanonicalSamples:
        """The same for points of which the nearest surface points are known."""
        if self.warp.config.blend == "surface":
            position, linear = self._over_surface(points, nearest)
        else:
            position, linear = self._with_triangles(points, nearest.triangle)
        direction = torch.nn.functional.normalize(torch.einsum("nij,nj->ni", linear, directions), dim=-1)
        masks = self.warp.masks_at(nearest)
        for part, motion in enumerate(self.apart):
            position = position + masks[:, part, None] * displacements(motion, points)
        return CanonicalSamples(position, direction, masks, nearest.distance)

    def _over_surface(self, points: torch.Tensor, nearest: Nearest) -> tuple[torch.Tensor, torch.Tensor]:
        """Canonical positions (N, 3) and the linear part (N, 3, 3) of maps blended over the surface."""
        corner = self.warp.canonical.faces[nearest.triangle]
        b = nearest.barycentrics[:, :, None]
        surface = (self.vertices[corner] * b).sum(dim=1)
        canonical = (self.warp.canonical.vertices[corner] * b).sum(dim=1)
        linear = (self.vertex_maps[corner] * b[..., None]).sum(dim=1)
        position = canonical + torch.einsum("nij,nj->ni", linear, points - surface)
        if self.warp.loosens == 0.0:
            return position, linear
        first, second, third = self.vertices[corner].unbind(dim=1)
        above = (torch.linalg.cross(second - first, third - first) * (points - surface)).sum(dim=-1) > 0.0
        mouth = (self.warp.masks[corner] * b).sum(dim=1)[:, 0]
        loose = torch.where(above, 1.0 - held(nearest.distance, mouth, self.warp.loosens), 0.0)[:, None]
        alone = points + (self.warp.opened[corner] * b).sum(dim=1)
        identity = torch.eye(3, device=points.device)
        return position + loose * (alone - position), linear + loose[..., None] * (identity - linear)

    def _with_triangles(self, points: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of the maps of the nearest triangles ``own`` (N,) and, on the face, of their neighbours."""
        warp = self.warp
        ridden = torch.cat([own[:, None], warp.neighbours[own]], dim=1)
        corner = warp.canonical.faces[ridden, 0]
        counts = ridden != own[:, None]
        counts &= (warp.regions[own] == FACE)[:, None] & (warp.config.blend == "neighbours")
        counts[:, 0] = True
        decay = torch.tensor([OWN_DECAY] + [NEIGHBOURS_DECAY] * 3, device=points.device)
        away = (points[:, None] - self.soup.centre[ridden]).norm(dim=-1)
        weight = torch.exp(-decay * away) * counts
        weight /= weight.sum(dim=1, keepdim=True)
        linear = self.triangle_maps[ridden]
        offset = points[:, None] - self.vertices[corner]
        carried = warp.canonical.vertices[corner] + torch.einsum("nkij,nkj->nki", linear, offset)
        return (carried * weight[..., None]).sum(dim=1), (linear * weight[..., None, None]).sum(dim=1)


def displacements(motion: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """How far a small ``motion`` (MOTION,) moves points (N, 3) of head space, to first order: (N, 3) metres."""
    return motion[:3] + torch.linalg.cross(motion[None, 3:] / LEVER, points)


def loosens(config: WarpConfig) -> float:
    """`WarpConfig.loosens`, metres, of the warp that can; 0 is never."""
    return config.loosens if config.blend == "surface" else 0.0


def held(distance: torch.Tensor, mouth: torch.Tensor, reach: float) -> torch.Tensor:
    """How much of an expression's motion is left at a ``distance`` (N,), metres, above the surface: 1 to 0.

    All of it near the skin and in the mouth, whose mask is ``mouth`` (N,); none from ``reach`` metres on.
    """
    return 1.0 - smoothstep(distance / reach, HELD_WHOLLY, 1.0) * (1.0 - mouth)


def fade(distance: torch.Tensor) -> torch.Tensor:
    """How much of the expression code is left at a distance (metres) from the surface: 1 to 0 over 2 cm."""
    return (1.0 - distance / 0.02).clamp(0.0, 1.0)

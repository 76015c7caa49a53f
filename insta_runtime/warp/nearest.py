"""Nearest point on a triangle mesh: by brute force (for tests), and by candidate triangles of a voxel grid.

The topology never changes, so the triangles are sorted once into small compact leaves.  For each pose only the bounding
spheres of the leaves are recomputed, and each requested voxel takes its candidate triangles from the nearest leaves.  A
point is then tested against the candidates of its voxel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEAF_DEPTH = 9
"""Depth of the tree of leaves: 2^9 leaves of about 19 triangles each on a head of 9,500 triangles."""
LEAVES_A_CELL = 8
"""Number of nearest leaves from which a voxel takes its candidate triangles."""
MOVED = 0.003
"""Displacement of triangles in metres up to which the voxels near them keep the candidates of another pose."""
CPU_CHUNK = 4096
"""Number of points that are processed at once on a CPU, to fit its caches."""
GPU_CHUNK = 1 << 18
"""Number of points that are processed at once on a GPU, to use less than half a gigabyte."""
TESTED = 6
"""Number of candidates with the smallest power distance that are tested exactly for each point."""


@dataclass(frozen=True)
class Nearest:
    """Nearest surface points of N points.

    Attributes:
        triangle: (N,) int64 index of the triangle.
        barycentrics: (N, 3) barycentric coordinates of the nearest point; non-negative, with sum 1.
        distance: (N,) unsigned distance, metres.
    """

    triangle: torch.Tensor
    barycentrics: torch.Tensor
    distance: torch.Tensor


class TriangleSoup:
    """Precomputed quantities of F triangles for point-triangle distances, one row per quantity.

    Attributes:
        packed: (12, F) corner a, edges ab and ac, and the products ab.ab, ab.ac, ac.ac.
        balls: (4, F) centre and squared radius of a ball around the corners.
        centre: (F, 3) centroids.
    """

    def __init__(self, vertices: torch.Tensor, faces: torch.Tensor) -> None:
        a, b, c = vertices[faces].unbind(1)
        ab, ac = b - a, c - a
        d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
        self.packed = torch.cat([a.T, ab.T, ac.T, d00[None], d01[None], d11[None]])
        self.centre = (a + b + c) / 3.0
        radius = torch.stack([a, b, c]).sub(self.centre).square().sum(-1).amax(0)
        self.balls = torch.cat([self.centre.T, radius[None]])


def _closest(points: torch.Tensor, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared distance to the nearest point ``a + v ab + w ac`` of a triangle, and its coordinates v and w.

    ``points`` (3, ...) and ``packed`` (12, ...) broadcast; the nearest point is inside the triangle or on one of its
    three edges.  Quantities come first and points last, so that a CPU reads contiguous memory.
    """
    ax, ay, az, bx, by, bz, cx, cy, cz, d00, d01, d11 = packed
    px, py, pz = points[0] - ax, points[1] - ay, points[2] - az
    d20 = px * bx + py * by + pz * bz
    d21 = px * cx + py * cy + pz * cz
    app = px * px + py * py + pz * pz

    tiny = 1e-20
    t_ab = (d20 / d00.clamp_min(tiny)).clamp(0.0, 1.0)
    t_ac = (d21 / d11.clamp_min(tiny)).clamp(0.0, 1.0)
    bc = (d00 + d11 - 2.0 * d01).clamp_min(tiny)
    t_bc = ((d21 - d20 + d00 - d01) / bc).clamp(0.0, 1.0)
    u_bc = 1.0 - t_bc
    on_ab = t_ab * (t_ab * d00 - 2.0 * d20)
    on_ac = t_ac * (t_ac * d11 - 2.0 * d21)
    on_bc = u_bc * (u_bc * d00 + 2.0 * t_bc * d01 - 2.0 * d20) + t_bc * (t_bc * d11 - 2.0 * d21)

    determinant = d00 * d11 - d01 * d01
    inverse = 1.0 / determinant.clamp_min(tiny)
    v = (d11 * d20 - d01 * d21) * inverse
    w = (d00 * d21 - d01 * d20) * inverse
    inside = (v >= 0) & (w >= 0) & (v + w <= 1) & (determinant > tiny)
    on_face = v * (v * d00 + 2.0 * w * d01 - 2.0 * d20) + w * (w * d11 - 2.0 * d21)

    ab_first = on_ab <= on_ac
    best = torch.minimum(on_ab, on_ac)
    bc_first = on_bc < best
    best = torch.minimum(best, on_bc)
    inside &= on_face <= best  # otherwise the triangle is degenerate, and (v, w) are rounding errors
    best = torch.where(inside, on_face, best)
    best_v = torch.where(inside, v, torch.where(bc_first, u_bc, t_ab * ab_first))
    best_w = torch.where(inside, w, torch.where(bc_first, t_bc, t_ac * ~ab_first))
    return (app + best).clamp_min(0.0), best_v, best_w


def _nearest(triangle: torch.Tensor, squared: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> Nearest:
    barycentrics = torch.stack([1.0 - v - w, v, w], dim=-1).clamp(0.0, 1.0)
    return Nearest(triangle, barycentrics, squared.sqrt())


def nearest_brute_force(points: torch.Tensor, vertices: torch.Tensor, faces: torch.Tensor) -> Nearest:
    """Nearest surface points by testing each point against every triangle: the reference for tests.

    Args:
        points: (N, 3) metres, in the frame of the mesh.
        vertices: (V, 3); faces: (F, 3) int64.
    """
    soup = TriangleSoup(vertices, faces)
    best = torch.cat(
        [_closest(chunk.T[:, :, None], soup.packed[:, None])[0].argmin(dim=1) for chunk in points.split(256)]
    )
    return _nearest(best, *_closest(points.T, soup.packed[:, best]))


class TriangleLeaves:
    """Triangles of a mesh in ``2**depth`` compact groups ("leaves") of nearly equal size.

    Built once per topology by median splits of the centroids along their longest axis.

    Attributes:
        members: (leaves, size) int64 triangle indices; short leaves repeat their last triangle.
    """

    def __init__(self, vertices: torch.Tensor, faces: torch.Tensor, depth: int = LEAF_DEPTH) -> None:
        centres = vertices[faces].mean(dim=1).cpu()
        groups = [torch.arange(len(faces))]
        for _ in range(min(depth, max(0, len(faces).bit_length() - 4))):
            halves = []
            for group in groups:
                extent = centres[group].amax(0) - centres[group].amin(0)
                order = group[centres[group][:, int(extent.argmax())].argsort()]
                halves += [order[: len(order) // 2], order[len(order) // 2 :]]
            groups = halves
        size = max(len(group) for group in groups)
        members = torch.stack([torch.cat([g, g[-1:].expand(size - len(g))]) for g in groups])
        self.members = members.to(vertices.device)

    def within(self, reach: float, points: torch.Tensor, soup: TriangleSoup) -> torch.Tensor:
        """Conservative test for points (N, 3) within ``reach`` metres of the mesh: (N,) bool.

        True for all points within reach and for a few others, because each leaf is replaced by its bounding sphere.
        """
        centres = soup.centre[self.members]
        middle = centres.mean(dim=1)
        radius = ((centres - middle[:, None]).norm(dim=-1) + soup.balls[3, self.members].sqrt()).amax(dim=1)
        exact = "donot_use_mm_for_euclid_dist"
        return (torch.cdist(points, middle, compute_mode=exact) - radius).amin(dim=1) <= reach


class CandidateGrid:
    """Voxel grid that lists candidate triangles for the nearest point on a mesh.

    Args:
        soup: the triangles.
        leaves: their grouping.
        origin: (3,) lower corner of the cubic grid, metres.
        cell: edge length of a cell, metres.
        resolution: number of cells n along each side.
        wanted: (C,) int64 flat indices ((z * n + y) * n + x) of the cells that need candidates.
        count: number of candidates per cell.
        reference: grid of the same leaves in another pose, whose candidates are reused where the triangles near a cell
            have moved by less than `MOVED`.

    Points must lie in ``wanted`` cells; others get the candidates of an unrelated cell.
    """

    def __init__(
        self,
        soup: TriangleSoup,
        leaves: TriangleLeaves,
        origin: torch.Tensor,
        cell: float,
        resolution: int,
        wanted: torch.Tensor,
        count: int,
        reference: CandidateGrid | None = None,
    ) -> None:
        self.soup, self.origin, self.cell, self.resolution = soup, origin, cell, resolution
        self.row = torch.zeros(resolution**3, dtype=torch.int32, device=origin.device)
        self.row[wanted] = torch.arange(len(wanted), dtype=torch.int32, device=origin.device)
        if reference is None:
            parts = [self._choose(leaves, chunk, count) for chunk in wanted.split(16384)]
            self.candidates = torch.cat([candidates for candidates, _ in parts])
            self.near = torch.cat([near for _, near in parts])
        else:
            step = (soup.centre - reference.soup.centre).norm(dim=-1)
            kept = reference.row[wanted]
            moved = (step[leaves.members].amax(dim=1) > MOVED)[reference.near[kept]].any(dim=1)
            self.candidates = reference.candidates[kept]
            stale = moved.nonzero()[:, 0]
            if len(stale):
                self.candidates[stale] = self._choose(leaves, wanted[stale], count)[0]

    def _choose(self, leaves: TriangleLeaves, cells: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Candidates (C, count) int32 of ``cells`` (C,), and the leaves (C, LEAVES_A_CELL) int32 they come from."""
        n = self.resolution
        index = torch.stack([cells % n, cells // n % n, cells // (n * n)], dim=-1)
        centres = self.origin + (index + 0.5) * self.cell
        leaf_points = self.soup.centre[leaves.members]
        leaf_centre = leaf_points.mean(dim=1)
        leaf_radius = (leaf_points - leaf_centre[:, None]).norm(dim=-1).amax(dim=1)
        reach = torch.cdist(centres, leaf_centre) - leaf_radius
        near = reach.topk(min(LEAVES_A_CELL, len(leaf_centre)), largest=False).indices
        pool = leaves.members[near].flatten(1)
        power = _power_distance(centres, self.soup, pool)
        best = power.topk(min(count, pool.shape[1]), largest=False).indices
        return pool.gather(1, best).int(), near.int()

    def cell_of(self, points: torch.Tensor) -> torch.Tensor:
        """Flat cell indices (N,) int64 of points (N, 3), clamped into the grid."""
        xyz = ((points - self.origin) / self.cell).long().clamp(0, self.resolution - 1)
        return (xyz[:, 2] * self.resolution + xyz[:, 1]) * self.resolution + xyz[:, 0]

    def query(self, points: torch.Tensor) -> Nearest:
        """Nearest surface points of points (N, 3) in metres, searched among the candidates of their cells."""
        parts = []
        for chunk in points.split(CPU_CHUNK if points.device.type == "cpu" else GPU_CHUNK):
            candidates = self.candidates[self.row[self.cell_of(chunk)]]
            power = _power_distance(chunk, self.soup, candidates)
            few = power.topk(min(TESTED, candidates.shape[1]), largest=False, sorted=False).indices
            few = candidates.gather(1, few).T.contiguous()
            packed = self.soup.packed[:, few.view(-1)].view(12, *few.shape)
            squared, v, w = _closest(chunk.T[:, None], packed)
            best = squared.argmin(dim=0, keepdim=True)
            parts.append(torch.stack([squared.gather(0, best)[0], v.gather(0, best)[0], w.gather(0, best)[0]]))
            parts.append(few.gather(0, best))
        if not parts:
            none = torch.zeros(0, dtype=torch.int64, device=points.device)
            return Nearest(none, points.new_zeros((0, 3)), points.new_zeros(0))
        return _nearest(torch.cat(parts[1::2], dim=1)[0].long(), *torch.cat(parts[0::2], dim=1))


def _power_distance(points: torch.Tensor, soup: TriangleSoup, triangles: torch.Tensor) -> torch.Tensor:
    """Power distances (N, K) of points (N, 3) to the balls of ``triangles`` (N, K): |p - centre|^2 - radius^2.

    Cheap to compute, and small for the few triangles that need an exact test, including large ones.
    """
    x, y, z, squared_radius = soup.balls[:, triangles.reshape(-1)].view(4, *triangles.shape)
    px, py, pz = points.T[:, :, None]
    return (x - px).square_() + (y - py).square_() + (z - pz).square_() - squared_radius

"""The triangle nearest to a point: brute force (the truth) and candidates from a voxel grid (what runs).

The topology never changes, so the triangles are sorted once into small compact leaves.  Each frame only refits
the leaves' spheres, and each wanted cell of a voxel grid picks its candidate triangles from the nearest leaves.
A point then tests the candidates of its cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEAF_DEPTH = 9  # 2^9 leaves: about 19 triangles each on a head of 9.5 k triangles
LEAVES_A_CELL = 8
TESTED = 6  # candidates, by the distance of their circumspheres' centres, that a point is really tested against


@dataclass(frozen=True)
class Nearest:
    """The surface point nearest to each of N points.

    Attributes:
        triangle: (N,) int64 index into the faces.
        barycentrics: (N, 3) of the nearest point; they sum to 1 and none is negative.
        distance: (N,) metres, unsigned.
    """

    triangle: torch.Tensor
    barycentrics: torch.Tensor
    distance: torch.Tensor


class TriangleSoup:
    """What point-triangle distances need of each triangle, packed: (F, 12)."""

    def __init__(self, vertices: torch.Tensor, faces: torch.Tensor) -> None:
        a, b, c = vertices[faces].unbind(1)
        ab, ac = b - a, c - a
        d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
        self.centre = (a + b + c) / 3.0
        self.squared_radius = (a - self.centre).square().sum(-1)
        self.packed = torch.cat([a, ab, ac, d00[:, None], d01[:, None], d11[:, None]], dim=-1)


def _closest(points: torch.Tensor, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared distance to, and coordinates (v, w) on, a triangle: the best of its inside and its three edges.

    ``points`` (..., 3) and ``packed`` (..., 12) broadcast; the nearest point is ``a + v ab + w ac``.
    """
    ap = points - packed[..., 0:3]
    d20 = (ap * packed[..., 3:6]).sum(-1)
    d21 = (ap * packed[..., 6:9]).sum(-1)
    d00, d01, d11 = packed[..., 9], packed[..., 10], packed[..., 11]
    app = (ap * ap).sum(-1)

    tiny = 1e-20
    t_ab = (d20 / d00.clamp_min(tiny)).clamp(0.0, 1.0)
    t_ac = (d21 / d11.clamp_min(tiny)).clamp(0.0, 1.0)
    bc = (d00 + d11 - 2.0 * d01).clamp_min(tiny)
    t_bc = ((d21 - d20 + d00 - d01) / bc).clamp(0.0, 1.0)
    on_ab = t_ab * (t_ab * d00 - 2.0 * d20)
    on_ac = t_ac * (t_ac * d11 - 2.0 * d21)
    u_bc = 1.0 - t_bc
    on_bc = u_bc * (u_bc * d00 + 2.0 * t_bc * d01 - 2.0 * d20) + t_bc * (t_bc * d11 - 2.0 * d21)

    determinant = d00 * d11 - d01 * d01
    inverse = 1.0 / determinant.clamp_min(tiny)
    v = (d11 * d20 - d01 * d21) * inverse
    w = (d00 * d21 - d01 * d20) * inverse
    inside = (v >= 0) & (w >= 0) & (v + w <= 1) & (determinant > tiny)
    on_face = v * (v * d00 + 2.0 * w * d01 - 2.0 * d20) + w * (w * d11 - 2.0 * d21)

    ab_first = on_ab <= on_ac
    best = torch.where(ab_first, on_ab, on_ac)
    best_v = torch.where(ab_first, t_ab, torch.zeros_like(t_ab))
    best_w = torch.where(ab_first, torch.zeros_like(t_ac), t_ac)
    bc_first = on_bc < best
    best = torch.where(inside, on_face, torch.where(bc_first, on_bc, best))
    best_v = torch.where(inside, v, torch.where(bc_first, u_bc, best_v))
    best_w = torch.where(inside, w, torch.where(bc_first, t_bc, best_w))
    return (app + best).clamp_min(0.0), best_v, best_w


def _gather(points: torch.Tensor, soup: TriangleSoup, triangle: torch.Tensor) -> Nearest:
    squared, v, w = _closest(points, soup.packed[triangle])
    barycentrics = torch.stack([1.0 - v - w, v, w], dim=-1).clamp(0.0, 1.0)
    return Nearest(triangle, barycentrics, squared.sqrt())


def nearest_brute_force(points: torch.Tensor, vertices: torch.Tensor, faces: torch.Tensor) -> Nearest:
    """The truth for tests: every one of the N points against every triangle.

    Args:
        points: (N, 3) metres, in the frame of the mesh.
        vertices: (V, 3); faces: (F, 3) int64.
    """
    soup = TriangleSoup(vertices, faces)
    best = torch.cat([_closest(chunk[:, None], soup.packed)[0].argmin(dim=1) for chunk in points.split(256)])
    return _gather(points, soup, best)


class TriangleLeaves:
    """The triangles of a mesh in ``2**depth`` compact groups of (nearly) equal size.

    Built once per topology by median splits of the centroids along their longest axis.

    Attributes:
        members: (leaves, size) int64 triangle indices; short leaves repeat their last one.
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


class CandidateGrid:
    """Candidate triangles per voxel of a posed mesh.

    Args:
        soup: the posed triangles.
        leaves: their grouping.
        origin: (3,) metres, lower corner of the grid; cell: edge of a cell in metres; shape: cells along x, y, z.
        wanted: (C,) int64 flat indices ((z * ny + y) * nx + x) of the cells that will be asked for.
        count: candidates a cell.

    A point in a cell that was not wanted gets the candidates of the first wanted one: ask only for wanted cells.
    """

    def __init__(
        self,
        soup: TriangleSoup,
        leaves: TriangleLeaves,
        origin: torch.Tensor,
        cell: float,
        shape: tuple[int, int, int],
        wanted: torch.Tensor,
        count: int,
    ) -> None:
        self.soup, self.origin, self.cell, self.shape = soup, origin, cell, shape
        nx, ny, nz = shape
        device = origin.device
        z, rest = wanted // (nx * ny), wanted % (nx * ny)
        index = torch.stack([rest % nx, rest // nx, z], dim=-1)
        centres = origin + (index + 0.5) * cell

        leaf_points = soup.centre[leaves.members]
        leaf_centre = leaf_points.mean(dim=1)
        leaf_radius = (leaf_points - leaf_centre[:, None]).norm(dim=-1).amax(dim=1)
        reach = torch.cdist(centres, leaf_centre) - leaf_radius
        near = reach.topk(min(LEAVES_A_CELL, len(leaf_centre)), largest=False).indices
        pool = leaves.members[near].flatten(1)
        squared = (soup.centre[pool] - centres[:, None]).square().sum(-1) - soup.squared_radius[pool]
        best = squared.topk(min(count, pool.shape[1]), largest=False).indices
        self.candidates = pool.gather(1, best).int()
        self.row = torch.zeros(nx * ny * nz, dtype=torch.int32, device=device)
        self.row[wanted] = torch.arange(len(wanted), dtype=torch.int32, device=device)

    def cell_of(self, points: torch.Tensor) -> torch.Tensor:
        """Flat cell index of (N, 3) points, clamped into the grid: (N,) int64."""
        nx, ny, nz = self.shape
        index = ((points - self.origin) / self.cell).long()
        x, y, z = index[:, 0].clamp(0, nx - 1), index[:, 1].clamp(0, ny - 1), index[:, 2].clamp(0, nz - 1)
        return (z * ny + y) * nx + x

    def query(self, points: torch.Tensor) -> Nearest:
        """The nearest of the candidates for (N, 3) points that lie in wanted cells."""
        parts = []
        for chunk in points.split(4096):  # small enough for the caches of a CPU
            candidates = self.candidates[self.row[self.cell_of(chunk)]]
            # The power distance to a ball around each triangle picks the few that are worth an exact test.
            power = (self.soup.centre[candidates] - chunk[:, None]).square().sum(-1)
            power -= self.soup.squared_radius[candidates]
            few = power.topk(min(TESTED, candidates.shape[1]), largest=False).indices
            candidates = candidates.gather(1, few)
            squared, v, w = _closest(chunk[:, None], self.soup.packed[candidates])
            best = squared.argmin(dim=1, keepdim=True)
            v, w = v.gather(1, best)[:, 0], w.gather(1, best)[:, 0]
            barycentrics = torch.stack([1.0 - v - w, v, w], dim=-1).clamp(0.0, 1.0)
            distance = squared.gather(1, best)[:, 0].sqrt()
            parts.append((candidates.gather(1, best)[:, 0].long(), barycentrics, distance))
        if not parts:
            empty = points.new_zeros((0, 3))
            return Nearest(torch.zeros(0, dtype=torch.int64, device=points.device), empty, empty[:, 0])
        triangle, barycentrics, distance = (torch.cat(part) for part in zip(*parts, strict=True))
        return Nearest(triangle, barycentrics, distance)

"""Mesh rasteriser: the visible triangle of each pixel, the point on it, and its depth.

Plain torch on any device, without a loop over triangles.  A triangle is split into the pixel rows that it
touches, a row into the pixels between the two edges that bound it; every pixel keeps the fragment with the
largest inverse depth.  Work and memory follow the number of fragments, not the number of triangles
times the number of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from insta_runtime.types import Camera

NEAR = 0.01
"""Near plane in metres: a triangle with a corner nearer than this is dropped."""

_EDGE = 1e-5
"""Distance outside an edge (in barycentric units) up to which a pixel centre counts as inside, so that rounding
leaves no gaps between neighbours."""

_LAST = 0x7FFFFFFF
"""Rank of triangle 0; ranks decrease with the index, so that of equally near triangles the first wins."""

_MIN_AREA = 1e-8
"""Twice the area in square pixels below which a triangle counts as degenerate."""


@dataclass(frozen=True)
class Raster:
    """Rasterised mesh: visible triangle, barycentrics and depth of each pixel, sampled at its centre (+0.5).

    Attributes:
        triangle: (H, W) int64 index into ``faces`` of the visible triangle, -1 where there is none.
        barycentrics: (H, W, 3) float32, perspective-correct weights of its corners; zero where there is none.
        depth: (H, W) float32 camera z in metres, infinite where there is none.
        faces: (F, 3) int64, the rasterised triangles.
    """

    triangle: torch.Tensor
    barycentrics: torch.Tensor
    depth: torch.Tensor
    faces: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """Mask of the pixels that the mesh covers, (H, W) bool."""
        return self.triangle >= 0

    def interpolate(self, vertex_values: torch.Tensor) -> torch.Tensor:
        """Interpolate vertex values (V, C) barycentrically to the pixels: (H, W, C), zero where there is no triangle.

        Differentiable with respect to ``vertex_values``.
        """
        pixels = self.mask.flatten().nonzero().squeeze(1)
        corners = self.faces.index_select(0, self.triangle.flatten().index_select(0, pixels))
        weights = self.barycentrics.flatten(0, 1).index_select(0, pixels).to(vertex_values.dtype)
        values = weights[:, 0, None] * vertex_values.index_select(0, corners[:, 0])
        values = values + weights[:, 1, None] * vertex_values.index_select(0, corners[:, 1])
        values = values + weights[:, 2, None] * vertex_values.index_select(0, corners[:, 2])
        height, width = self.triangle.shape
        picture = values.new_zeros(height * width, vertex_values.shape[1])
        return picture.index_copy(0, pixels, values).view(height, width, -1)


@torch.no_grad()
def rasterise(vertices_cam: torch.Tensor, faces: torch.Tensor, camera: Camera, *, cull: bool = False) -> Raster:
    """Rasterise a triangle mesh, without gradients: the visible triangle, barycentrics and depth of each pixel.

    Args:
        vertices_cam: (V, 3) float32, camera space (OpenCV axes), metres.
        faces: (F, 3) int64 on the same device.
        camera: camera; its ``height`` and ``width`` are the size of the result.
        cull: drop back faces, whose corners run clockwise in the image.

    Of equally near triangles the one with the lowest index wins.  Triangles that are degenerate, outside the
    image, or have a corner nearer than ``NEAR`` are dropped (not clipped).
    """
    height, width, device = camera.height, camera.width, vertices_cam.device
    z = vertices_cam[:, 2]
    inverse_z = 1.0 / z.clamp_min(NEAR)
    x = camera.fx * vertices_cam[:, 0] * inverse_z + camera.cx
    y = camera.fy * vertices_cam[:, 1] * inverse_z + camera.cy
    corner_x, corner_y, corner_w = x[faces], y[faces], inverse_z[faces]  # (F, 3)

    ax, ay = corner_x[:, 1] - corner_x[:, 0], corner_y[:, 1] - corner_y[:, 0]
    bx, by = corner_x[:, 2] - corner_x[:, 0], corner_y[:, 2] - corner_y[:, 0]
    area = ax * by - ay * bx
    low_x, high_x = _pixel_range(corner_x, width)
    low_y, high_y = _pixel_range(corner_y, height)
    kept = (z[faces] > NEAR).all(1) & (high_x >= low_x) & (high_y >= low_y)
    kept &= (area < -_MIN_AREA) if cull else (area.abs() > _MIN_AREA)
    face = kept.nonzero().squeeze(1)

    # Barycentric weights are affine in the offset from corner 0: (1, 0, 0) + gradient_x dx + gradient_y dy.
    # All quantities that rows and pixels need of their triangle are in one table: one look-up is cheaper than five.
    gradient_x = torch.stack([ay - by, by, -ay], 1) / area[:, None]
    gradient_y = torch.stack([bx - ax, -bx, ax], 1) / area[:, None]
    origin = torch.stack([corner_x[:, 0], corner_y[:, 0]], 1)
    bounds = torch.stack([low_x, high_x, low_y], 1)
    table = torch.cat([gradient_x, gradient_y, corner_w, origin, bounds], 1).index_select(0, face)

    # Rows: (triangle, pixel row) pairs, and the pixels of each row that lie inside all three edges.
    of_face, step = _enumerate((high_y - low_y + 1).index_select(0, face).long())
    slope, gradient, w, origin, bounds = table.index_select(0, of_face).split((3, 3, 3, 2, 3), 1)
    row = bounds[:, 2] + step
    start = gradient * (row + 0.5 - origin[:, 1])[:, None]
    start[:, 0] += 1.0
    crossing = (-_EDGE - start) / slope + (origin[:, :1] - 0.5)
    lowest = torch.where(slope > 0, crossing, -torch.inf).amax(1)
    highest = torch.where(slope < 0, crossing, torch.inf).amin(1)
    outside = ((slope == 0) & (start < -_EDGE)).any(1)
    left = torch.maximum(lowest.ceil(), bounds[:, 0])
    right = torch.minimum(highest.floor(), bounds[:, 1])
    count = (right - left + 1).clamp_min(0).masked_fill_(outside, 0).long()

    # Fragments: every pixel keeps the largest inverse depth.  Positive floats order like their bits, so depth
    # and triangle share one integer and one scatter decides both.
    of_row, step = _enumerate(count)
    w_slope = (slope * w).sum(1)
    w_start = (start * w).sum(1) + w_slope * (left + 0.5 - origin[:, 0])
    fragment = torch.stack([w_start, w_slope], 1).index_select(0, of_row)
    fragment_w = (fragment[:, 0] + fragment[:, 1] * step).clamp_min_(1e-9).float()
    pixel = (row.long() * width + left.long()).index_select(0, of_row) + step
    rank = (_LAST - of_face).index_select(0, of_row)
    key = (fragment_w.view(torch.int32).long() << 32) + rank
    best = torch.full((height * width,), -1, dtype=torch.int64, device=device)
    best.scatter_reduce_(0, pixel, key, "amax")

    covered = (best >= 0).nonzero().squeeze(1)
    winner = _LAST - (best.index_select(0, covered) & _LAST)
    slope, gradient, w, origin, _ = table.index_select(0, winner).split((3, 3, 3, 2, 3), 1)
    dx = (covered % width) + 0.5 - origin[:, 0]
    dy = torch.div(covered, width, rounding_mode="floor") + 0.5 - origin[:, 1]
    flat = slope * dx[:, None] + gradient * dy[:, None]
    flat[:, 0] += 1.0
    weights = flat.clamp_min_(0.0) * w
    total = weights.sum(1, keepdim=True)

    triangle = torch.full((height * width,), -1, dtype=torch.int64, device=device)
    triangle[covered] = face[winner]
    barycentrics = torch.zeros(height * width, 3, device=device)
    barycentrics[covered] = (weights / total).float()
    depth = torch.full((height * width,), torch.inf, device=device)
    depth[covered] = (flat.sum(1) / total.squeeze(1)).float()
    return Raster(triangle.view(height, width), barycentrics.view(height, width, 3), depth.view(height, width), faces)


def _pixel_range(corners: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last of ``size`` pixels whose centres lie between the corners (F, 3) along one axis: whole floats."""
    low = (corners.amin(1) - 0.5 - _EDGE).ceil().clamp(0, size)
    high = (corners.amax(1) - 0.5 + _EDGE).floor().clamp(-1, size - 1)
    return low, high


def _enumerate(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (i, 0), (i, 1), ... up to ``counts[i]`` for every i: owner and step, both (sum of counts,) int64."""
    owner = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - first.index_select(0, owner)

"""Geometry of points on a triangle mesh: geometric median and spread of points, and the nearest point on a mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from insta_runtime.types import Float64


def geometric_median(points: Float64, weights: Float64) -> Float64:
    """Weighted geometric median (3,) of ``points`` (N, 3) with ``weights`` (N,), by Weiszfeld's algorithm."""
    median = np.average(points, axis=0, weights=weights)
    for _ in range(50):
        pull = weights / np.maximum(np.linalg.norm(points - median, axis=1), 1e-6)
        median = np.average(points, axis=0, weights=pull)
    return median


def spread(offsets: Float64, weights: Float64) -> float:
    """Robust estimate of the root mean square length of ``offsets`` (N, 3) from a point on a surface.

    It is 1.2 times the weighted median length, the ratio for a normal distribution in the tangent plane; outliers
    hardly affect it.  ``weights`` (N,).
    """
    length = np.linalg.norm(offsets, axis=1)
    order = np.argsort(length)
    share = np.cumsum(weights[order])
    return 1.2 * float(length[order[np.searchsorted(share, 0.5 * share[-1])]])


def nearest_on_surface(
    point: Float64, vertices: Float64, faces: NDArray[np.int64], among: NDArray[np.int64]
) -> tuple[int, Float64]:
    """Index of the triangle nearest to ``point`` (3,), and barycentric coordinates (3,) of the nearest point on it.

    ``among`` are the indices of the triangles that are searched, of the mesh ``vertices`` (V, 3), ``faces`` (F, 3).
    Only the 64 of them with the nearest centroids are compared.
    """
    centre = vertices[faces[among]].mean(1)
    close = among[np.argsort(((centre - point) ** 2).sum(1))[:64]]
    best = (np.inf, -1, np.zeros(3))
    for face in close:
        corners = vertices[faces[face]]
        bary = _nearest_in_triangle(point, corners)
        distance = float(((bary @ corners - point) ** 2).sum())
        if distance < best[0]:
            best = (distance, int(face), bary)
    return best[1], best[2]


def _nearest_in_triangle(point: Float64, corners: Float64) -> Float64:
    """Barycentric coordinates (3,) of the point of a triangle that is nearest to ``point``: inside or on an edge."""
    edges = corners[1:] - corners[0]
    inner = np.linalg.solve(edges @ edges.T, edges @ (point - corners[0]))
    bary = np.array([1.0 - inner.sum(), *inner])
    if (bary >= 0.0).all():
        return bary
    candidates = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        edge = corners[b] - corners[a]
        along = np.clip((point - corners[a]) @ edge / (edge @ edge), 0.0, 1.0)
        on_edge = np.zeros(3)
        on_edge[[a, b]] = 1.0 - along, along
        candidates.append(on_edge)
    return min(candidates, key=lambda c: float(((c @ corners - point) ** 2).sum()))

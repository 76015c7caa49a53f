"""Regions and edge neighbours of triangles, as the warp of INSTA uses them.

INSTA stores hand-made region labels with its mesh; here the head model's vertex masks replace them.
"""

from __future__ import annotations

import torch

OTHER, FACE, EYES, LIPS = range(4)
"""Region labels of triangles."""
FROM = 0.5
"""Value of a soft mask above which a vertex belongs to the region."""


def triangle_regions(faces: torch.Tensor, face: torch.Tensor, eyes: torch.Tensor, lips: torch.Tensor) -> torch.Tensor:
    """Region of each triangle of ``faces`` (F, 3): (F,) int64, OTHER, FACE, EYES or LIPS.

    ``face``, ``eyes`` and ``lips`` are soft vertex masks (V,) in [0, 1].  A triangle belongs to a region if any of its
    corners does; EYES override FACE, and LIPS override both.
    """
    regions = torch.full((len(faces),), OTHER, dtype=torch.int64, device=faces.device)
    for region, mask in ((FACE, face), (EYES, eyes), (LIPS, lips)):
        regions[(mask[faces] > FROM).any(dim=1)] = region
    return regions


def edge_neighbours(faces: torch.Tensor) -> torch.Tensor:
    """Indices (F, 3) int64 of the triangles adjacent to each triangle of ``faces`` (F, 3).

    Columns: across the edges between corners 0 and 1, 1 and 2, 2 and 0.  At a boundary edge, which has no neighbour, it
    is the triangle's own index.
    """
    count = len(faces)
    edges = torch.stack([faces, faces.roll(-1, dims=1)], dim=-1).sort(dim=-1).values.reshape(-1, 2)
    keys = edges[:, 0] * (int(faces.max()) + 1) + edges[:, 1]
    order = keys.argsort(stable=True)
    pairs = (keys[order][1:] == keys[order][:-1]).nonzero()[:, 0]
    one, other = order[pairs], order[pairs + 1]
    beyond = torch.arange(count, device=faces.device).repeat_interleave(3)
    beyond[one], beyond[other] = other // 3, one // 3
    return beyond.view(count, 3)

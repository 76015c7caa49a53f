"""Regions and edge neighbours of triangles, as the warp of INSTA uses them.

INSTA stores painted regions with its mesh; here the head model's masks replace them.  A triangle belongs to a region if
any of its corners does, and later regions override earlier ones.
"""

from __future__ import annotations

import torch

OTHER, FACE, EYES, LIPS = range(4)
FROM = 0.5
"""Value of a mask from which a vertex belongs to the region."""


def triangle_regions(faces: torch.Tensor, face: torch.Tensor, eyes: torch.Tensor, lips: torch.Tensor) -> torch.Tensor:
    """Region of each triangle, (F,) int64 (OTHER, FACE, EYES or LIPS), from soft vertex masks (V,)."""
    regions = torch.full((len(faces),), OTHER, dtype=torch.int64, device=faces.device)
    for region, mask in ((FACE, face), (EYES, eyes), (LIPS, lips)):
        regions[(mask[faces] > FROM).any(dim=1)] = region
    return regions


def edge_neighbours(faces: torch.Tensor) -> torch.Tensor:
    """Neighbour of each triangle across its edges 01, 12 and 20: (F, 3) int64; the triangle itself at a boundary."""
    count = len(faces)
    edges = torch.stack([faces, faces.roll(-1, dims=1)], dim=-1).sort(dim=-1).values.reshape(-1, 2)
    keys = edges[:, 0] * (int(faces.max()) + 1) + edges[:, 1]
    order = keys.argsort(stable=True)
    pairs = (keys[order][1:] == keys[order][:-1]).nonzero()[:, 0]
    one, other = order[pairs], order[pairs + 1]
    beyond = torch.arange(count, device=faces.device).repeat_interleave(3)
    beyond[one], beyond[other] = other // 3, one // 3
    return beyond.view(count, 3)

"""Camera rays in head space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from insta_runtime.geometry import rotation_matrix
from insta_runtime.types import Camera, HeadState

EDGE = 256
"""Image width in pixels per pixel of margin: rays that pass the outline of the head mesh within the margin do not end
at the mesh (`farthest_around`)."""


@dataclass(frozen=True)
class Rays:
    """R camera rays in head space, torch float32.

    Attributes:
        origins: (R, 3) metres.
        directions: (R, 3) unit vectors.
        far: (R,) distance at which the ray ends, metres; infinite where the ray misses the mesh.
        turn: (3, 3) rotation of the view directions before the field is evaluated with them; None for no rotation.
    """

    origins: torch.Tensor
    directions: torch.Tensor
    far: torch.Tensor
    turn: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.origins)


def _at_unit_depth(camera: Camera, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersections x and y, (R,) each, of the rays of ``pixels`` (R,) with the plane at unit depth."""
    x = (pixels % camera.width + 0.5 - camera.cx) / camera.fx
    y = (pixels // camera.width + 0.5 - camera.cy) / camera.fy
    return x, y


def slant(camera: Camera, pixels: torch.Tensor) -> torch.Tensor:
    """Distance along the ray per unit of depth, (R,) >= 1, of ``pixels`` (R,) with flat indices y * width + x."""
    x, y = _at_unit_depth(camera, pixels)
    return torch.sqrt(1.0 + x * x + y * y)


def pixel_rays(state: HeadState, camera: Camera, pixels: torch.Tensor, depth: torch.Tensor, behind: float) -> Rays:
    """Camera rays through pixel centres, in head space: ``x_head = R^T (x_cam - t)``.

    Args:
        state: head state; its rotation and translation are used.
        camera: camera of the image.
        pixels: (R,) int64 flat indices y * width + x.
        depth: (R,) largest depth (z) in metres of the posed head mesh around each pixel (`farthest_around`), infinite
            where there is none.
        behind: distance in metres behind this depth at which rays end (`SamplingConfig.behind`); skin is opaque, but
            the mesh may show lips closed that are open.
    """
    rotation = rotation_matrix(state.rotation)
    eye = -rotation.T @ state.translation.astype(np.float64)
    turn = torch.as_tensor(rotation, dtype=torch.float32, device=pixels.device)
    x, y = _at_unit_depth(camera, pixels)
    length = slant(camera, pixels)
    directions = torch.stack([x, y, torch.ones_like(x)], dim=-1) / length[:, None] @ turn
    origins = torch.as_tensor(eye, dtype=torch.float32, device=pixels.device).expand_as(directions)
    return Rays(origins, directions, depth * length + behind)


def farthest_around(depth: torch.Tensor) -> torch.Tensor:
    """Largest depth in the neighbourhood of each pixel of a depth map (H, W): (H, W), same unit.

    The neighbourhood extends over W / `EDGE` pixels, at least one, in each direction.

    The outline of the mesh is never exactly that of the subject, so rays beside it must not end at the mesh.
    """
    edge = max(1, (depth.shape[1] + EDGE // 2) // EDGE)
    return torch.nn.functional.max_pool2d(depth[None, None], 2 * edge + 1, stride=1, padding=edge)[0, 0]

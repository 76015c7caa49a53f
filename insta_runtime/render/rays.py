"""Camera rays in head space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from insta_runtime.geometry import rotation_matrix
from insta_runtime.types import Camera, HeadState

EDGE = 256  # one pixel in so many around the outline of the mesh does not end rays


@dataclass(frozen=True)
class Rays:
    """R rays in head space, torch float32.

    Attributes:
        origins: (R, 3) metres.
        directions: (R, 3) unit.
        far: (R,) metres along the ray beyond which nothing can be seen; inf where the ray misses the mesh.
        turn: (3, 3) rotation of directions before the field is asked for colours along them; None for none.
    """

    origins: torch.Tensor
    directions: torch.Tensor
    far: torch.Tensor
    turn: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.origins)


def _at_unit_depth(camera: Camera, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the rays of ``pixels`` (R,), flat y * width + x, cross the plane at unit depth: x and y, (R,) each."""
    x = (pixels % camera.width + 0.5 - camera.cx) / camera.fx
    y = (pixels // camera.width + 0.5 - camera.cy) / camera.fy
    return x, y


def slant(camera: Camera, pixels: torch.Tensor) -> torch.Tensor:
    """Distance along the ray of each of ``pixels`` (R,), flat y * width + x, at unit depth: (R,) >= 1."""
    x, y = _at_unit_depth(camera, pixels)
    return torch.sqrt(1.0 + x * x + y * y)


def pixel_rays(state: HeadState, camera: Camera, pixels: torch.Tensor, depth: torch.Tensor, behind: float) -> Rays:
    """Rays through the centres of ``pixels`` (R,) int64, flat indices y * width + x, in the head's space.

    The head's rigid motion goes into the camera: ``x_head = R^T (x_cam - t)``.  ``depth`` (R,) is the depth (z) of
    the posed head mesh in metres, the farthest around each of these pixels (`farthest_around`), inf where there is
    none; rays end ``behind`` metres behind it, for skin is opaque, but lips may be wrongly closed
    (`SamplingConfig.behind`).
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
    """The largest of a picture's depths (H, W) a pixel or two away along both axes: where rays may end.

    The outline of a mesh is never quite that of the person: beside it a ray must be free to pass.
    """
    edge = max(1, (depth.shape[1] + EDGE // 2) // EDGE)
    return torch.nn.functional.max_pool2d(depth[None, None], 2 * edge + 1, stride=1, padding=edge)[0, 0]


def camera_vertices(vertices: torch.Tensor, state: HeadState) -> torch.Tensor:
    """Head space (V, 3) -> camera space (V, 3) by the state's rotation and translation."""
    rotation = torch.as_tensor(rotation_matrix(state.rotation), dtype=vertices.dtype, device=vertices.device)
    translation = torch.as_tensor(state.translation, dtype=vertices.dtype, device=vertices.device)
    return vertices @ rotation.T + translation

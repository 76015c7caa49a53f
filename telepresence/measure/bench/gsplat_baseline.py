"""Time of gsplat's rasteriser for as many Gaussians as other head avatars have, at the same size, for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from telepresence.measure.bench.timing import batch_ms

if TYPE_CHECKING:
    import torch

    from insta_runtime.render.model import AvatarModel
    from insta_runtime.types import Camera, HeadState

GAUSSIANS: Final = (14_000, 51_000, 200_000)
"""Numbers of Gaussians that are rasterised."""


def gsplat_ms(model: AvatarModel, states: list[HeadState], camera: Camera, seconds: float) -> dict[str, float]:
    """Median milliseconds of rasterisation, without deformation, by number of Gaussians.

    The Gaussians lie on the posed head mesh, each as large as its share of the surface.  ImportError without gsplat.
    """
    import torch
    from gsplat import rasterization

    device = model.device
    view = torch.eye(4, device=device)[None]
    matrix = torch.as_tensor(camera.matrix(), dtype=torch.float32, device=device)[None]
    result = {}
    for count in GAUSSIANS:
        clouds = [_cloud(model, state, count) for state in states]

        def draw(cloud: tuple[torch.Tensor, ...]) -> None:
            with torch.no_grad():
                rasterization(*cloud, view, matrix, camera.width, camera.height, packed=False)

        result[str(count)] = batch_ms(draw, clouds, device, seconds)
    return result


def _cloud(model: AvatarModel, state: HeadState, count: int) -> tuple[torch.Tensor, ...]:
    """Means, quaternions, scales, opacities and colours of random Gaussians on the posed mesh, in camera space."""
    import torch

    from insta_runtime.geometry import camera_vertices

    device = model.device
    a, b, c = camera_vertices(model.pose(state).vertices, state)[model.rig.faces].unbind(1)
    area = 0.5 * torch.linalg.cross(b - a, c - a).norm(dim=-1)
    chosen = torch.multinomial(area, count, replacement=True)
    u, v = torch.rand((2, count, 1), device=device)
    u, v = torch.where(u + v > 1.0, 1.0 - u, u), torch.where(u + v > 1.0, 1.0 - v, v)
    means = a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]
    turns = torch.nn.functional.normalize(torch.randn((count, 4), device=device), dim=-1)
    scales = (area.sum() / count).sqrt().expand(count, 3).contiguous()
    return means, turns, scales, torch.rand(count, device=device), torch.rand((count, 3), device=device)

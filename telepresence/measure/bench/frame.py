"""One rendered frame: from a head state to I420 in host memory, and the number of rays and samples it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from telepresence.measure.bench.timing import median

if TYPE_CHECKING:
    import torch

    from insta_runtime.backends import AnyRenderer
    from insta_runtime.render.model import AvatarModel
    from insta_runtime.types import Bytes, Camera, HeadState

WHITE = np.ones(3, dtype=np.float32)
"""Background of all measured frames, RGB in [0, 1]."""
_LUMA = np.array([65.481, 128.553, 24.966], dtype=np.float32) / 255.0
_BLUE = np.array([-37.797, -74.203, 112.0], dtype=np.float32) / 255.0
_RED = np.array([112.0, -93.786, -18.214], dtype=np.float32) / 255.0


def make_draw(renderer: AnyRenderer, camera: Camera) -> Callable[[HeadState], Bytes]:
    """Function that renders a head state over white and returns I420 in host memory, (3/2 * H, W) uint8."""
    from insta_runtime.render.renderer import Renderer

    if isinstance(renderer, Renderer):
        return lambda state: i420(renderer.render(state, camera).over(WHITE))
    return lambda state: renderer.frame(state, camera, "i420", WHITE).wait()


def i420(rgb: Bytes) -> Bytes:
    """Convert RGB (H, W, 3) uint8 with even sides to I420 (BT.601, studio range), stacked to (3/2 * H, W) uint8."""
    height, width, _ = rgb.shape
    picture = rgb.astype(np.float32)
    small = picture.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    planes = (picture @ _LUMA + 16.5, small @ _BLUE + 128.5, small @ _RED + 128.5)
    return np.concatenate([plane.astype(np.uint8).ravel() for plane in planes]).reshape(height * 3 // 2, width)


def scene(model: AvatarModel, states: Sequence[HeadState], camera: Camera) -> dict[str, float]:
    """Amount of computation in a frame, by the torch reference; medians over ``states``.

    Keys: ``rays``, their number; ``rays_hit``, the fraction that has samples; ``samples`` in the frame;
    ``samples_a_ray``, of a ray with samples; ``candidate_cells``, canonical cells that may be occupied, and
    ``occupied``, the fraction that is; ``posed_cells`` of the posed grid, and ``band``, the
    fraction of them near the head.
    """
    import torch

    rays, samples, band = [], [], []
    for state in states:
        head = model.pose(state)
        counts = samples_per_pixel(model, state, camera)
        rays.append(float((counts > 0).sum()))
        samples.append(float(counts.sum()))
        with torch.no_grad():
            band.append(float(model.occupancy.posed(head).float().mean()))
    hit, drawn = median(rays), median(samples)
    return {
        "rays": float(camera.width * camera.height),
        "rays_hit": hit / (camera.width * camera.height),
        "samples": drawn,
        "samples_a_ray": drawn / max(1.0, hit),
        "occupied": float(model.occupancy.occupied.float().mean()),
        "candidate_cells": float(len(model.occupancy.cells)),
        "band": median(band),
        "posed_cells": float(model.warp.resolution**3),
    }


def samples_per_pixel(model: AvatarModel, state: HeadState, camera: Camera) -> torch.Tensor:
    """Number of samples of each pixel's ray, (H * W,) int64."""
    import torch

    from insta_runtime.geometry import camera_vertices
    from insta_runtime.render.raster import rasterise
    from insta_runtime.render.rays import farthest_around, pixel_rays
    from insta_runtime.render.renderer import RAYS_AT_ONCE

    head = model.pose(state)
    with torch.no_grad():
        depth = farthest_around(rasterise(camera_vertices(head.vertices, state), model.rig.faces, camera).depth).view(
            -1
        )
        counts = []
        for pixels in torch.arange(camera.width * camera.height, device=model.device).split(RAYS_AT_ONCE):
            rays = pixel_rays(state, camera, pixels, depth[pixels], model.config.sampling.behind)
            samples = model.march(rays, head)
            counts.append(torch.bincount(samples.ray, minlength=len(pixels)))
    return torch.cat(counts)

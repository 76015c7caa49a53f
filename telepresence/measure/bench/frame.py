"""One picture of an avatar: from a head state to I420 in host memory, and what its rays meet on the way."""

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
_LUMA = np.array([65.481, 128.553, 24.966], dtype=np.float32) / 255.0
_BLUE = np.array([-37.797, -74.203, 112.0], dtype=np.float32) / 255.0
_RED = np.array([112.0, -93.786, -18.214], dtype=np.float32) / 255.0


def make_draw(renderer: AnyRenderer, camera: Camera) -> Callable[[HeadState], Bytes]:
    """``draw(state)``: the whole frame over white as I420, (3/2 * H, W) uint8 in host memory, when it is there."""
    from insta_runtime.render.renderer import Renderer

    if isinstance(renderer, Renderer):
        return lambda state: i420(renderer.render(state, camera).over(WHITE))
    return lambda state: renderer.frame(state, camera, "i420", WHITE).wait()


def i420(rgb: Bytes) -> Bytes:
    """(H, W, 3) uint8 of even sides as I420 (BT.601, studio range), planes stacked: (3/2 * H, W) uint8."""
    height, width, _ = rgb.shape
    picture = rgb.astype(np.float32)
    small = picture.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    planes = (picture @ _LUMA + 16.5, small @ _BLUE + 128.5, small @ _RED + 128.5)
    return np.concatenate([plane.astype(np.uint8).ravel() for plane in planes]).reshape(height * 3 // 2, width)


def scene(model: AvatarModel, states: Sequence[HeadState], camera: Camera) -> dict[str, float]:
    """How much there is to compute in a picture, by the torch reference; medians over ``states``.

    ``samples_a_ray``: of a ray that meets anything. ``rays_hit``: part of all rays. ``samples``: of a picture.
    ``occupied``: part of the canonical cells that may hold something which does.  ``band``: part of the posed grid.
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
    """Samples of each pixel's ray, (H * W,) int64."""
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

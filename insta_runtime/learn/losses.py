"""Losses of a batch of rays."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from insta_runtime.config import LearnConfig
from insta_runtime.render.compositing import Composite


@dataclass(frozen=True)
class RayTargets:
    """What R rays should see.

    Attributes:
        rgba: (R, 4) premultiplied, in [0, 1].
        depth: (R,) distance along the ray to the mesh in metres, 0 where there is no prior.
        mouth: (R,) bool, the ray meets the mouth.
        background: (R, 3) the random colour that the ray is composited over.
    """

    rgba: torch.Tensor
    depth: torch.Tensor
    mouth: torch.Tensor
    background: torch.Tensor


def huber(error: torch.Tensor, delta: float) -> torch.Tensor:
    """Huber's loss of ``error``, elementwise: quadratic below ``delta``, linear above."""
    size = error.abs()
    return torch.where(size < delta, 0.5 * size.square() / delta, size - 0.5 * delta)


def ray_loss(seen: Composite, targets: RayTargets, config: LearnConfig) -> torch.Tensor:
    """Photometric + mask + depth loss, a scalar.

    Photometric: Huber on colours composited over the random background, so that opacity is learned too.  Mask:
    squared error of opacity.  Depth: L1 of the expected distance beyond ``depth_slack``, where the mesh shows skin.
    """
    colour = seen.colour + (1.0 - seen.opacity)[:, None] * targets.background
    truth = targets.rgba[:, :3] + (1.0 - targets.rgba[:, 3:]) * targets.background
    weight = 1.0 + (config.mouth_weight - 1.0) * targets.mouth.float()
    photometric = (huber(colour - truth, config.huber).mean(dim=-1) * weight).mean()
    mask = (seen.opacity - targets.rgba[:, 3]).square().mean()
    off = ((seen.distance - targets.depth).abs() - config.depth_slack).clamp_min(0.0)
    depth = (off * (targets.depth > 0)).mean()
    return photometric + config.mask_weight * mask + config.depth_weight * depth

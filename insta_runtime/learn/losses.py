"""Training losses of a batch of rays: colour, opacity and depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from insta_runtime.config import LearnConfig
from insta_runtime.render.compositing import Composite


@dataclass(frozen=True)
class RayTargets:
    """Ground truth of R training rays.

    Attributes:
        rgba: (R, 4) colour of the training image with premultiplied alpha, in [0, 1].
        depth: (R,) distance along the ray to the head mesh in metres, 0 where the depth loss does not apply.
        mouth: (R,) bool, whether the ray meets the mouth region, whose colour loss has `LearnConfig.mouth_weight`.
        background: (R, 3) random colour over which both the ray and its ground truth are composited.
    """

    rgba: torch.Tensor
    depth: torch.Tensor
    mouth: torch.Tensor
    background: torch.Tensor


def huber(error: torch.Tensor, delta: float) -> torch.Tensor:
    """Huber loss of ``error``, elementwise: quadratic below ``delta``, linear above."""
    size = error.abs()
    return torch.where(size < delta, 0.5 * size.square() / delta, size - 0.5 * delta)


def ray_loss(rendered: Composite, targets: RayTargets, config: LearnConfig) -> torch.Tensor:
    """Weighted sum of colour, opacity and depth loss, averaged over the rays: a scalar tensor.

    Colour: Huber loss of colours composited over the random background, so that opacity is learned, too.  Opacity:
    squared error.  Depth: absolute error of the expected distance beyond `LearnConfig.depth_slack`, for rays with a
    target depth.
    """
    colour = rendered.colour + (1.0 - rendered.opacity)[:, None] * targets.background
    truth = targets.rgba[:, :3] + (1.0 - targets.rgba[:, 3:]) * targets.background
    weight = 1.0 + (config.mouth_weight - 1.0) * targets.mouth.float()
    photometric = (huber(colour - truth, config.huber).mean(dim=-1) * weight).mean()
    mask = (rendered.opacity - targets.rgba[:, 3]).square().mean()
    off = ((rendered.distance - targets.depth).abs() - config.depth_slack).clamp_min(0.0)
    depth = (off * (targets.depth > 0)).mean()
    return photometric + config.mask_weight * mask + config.depth_weight * depth

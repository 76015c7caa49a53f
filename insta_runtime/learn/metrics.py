"""Image metrics of the evaluation protocol: PSNR, SSIM, and the head region they are taken over."""

from __future__ import annotations

import math

import torch

from insta_runtime.types import Bytes, Float32


def psnr(picture: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures (H, W, 3) in [0, 1], over ``mask`` (H, W) bool if given.

    An empty mask gives NaN, equal pictures 100 dB.
    """
    error = (picture - truth).square().mean(dim=-1)
    mean = float(error.mean() if mask is None else error[mask].mean())
    return 100.0 if mean < 1e-10 else -10.0 * math.log10(mean) if not math.isnan(mean) else math.nan


def ssim(picture: torch.Tensor, truth: torch.Tensor) -> float:
    """Structural similarity of pictures (H, W, 3) in [0, 1] (Wang et al. 2004): Gaussian 11 x 11, sigma 1.5."""
    x = torch.arange(11, dtype=picture.dtype, device=picture.device) - 5.0
    kernel = torch.exp(-x.square() / (2.0 * 1.5**2))
    kernel = kernel / kernel.sum()
    window = (kernel[:, None] * kernel)[None, None].expand(3, 1, 11, 11)

    def blur(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(image, window, groups=3)

    a, b = picture.permute(2, 0, 1)[None], truth.permute(2, 0, 1)[None]
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2.0 * mean_a * mean_b + c1) * (2.0 * covariance + c2)
    return float((top / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))).mean())


def over_white(rgba: Float32 | torch.Tensor) -> torch.Tensor:
    """A premultiplied (H, W, 4) picture over white, (H, W, 3) float in [0, 1]."""
    picture = torch.as_tensor(rgba)
    return picture[..., :3] + (1.0 - picture[..., 3:])


def head_mask(alpha: Bytes) -> torch.Tensor:
    """The head region: alpha > 0.5, dilated by 1 % of the longest side.  (H, W) bool."""
    radius = max(1, round(0.01 * max(alpha.shape)))
    inside = (torch.as_tensor(alpha) > 127).float()[None, None]
    return torch.nn.functional.max_pool2d(inside, 2 * radius + 1, stride=1, padding=radius)[0, 0] > 0.5

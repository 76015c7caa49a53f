"""Image metrics of the evaluation protocol: PSNR, SSIM, and the mask of the head region."""

from __future__ import annotations

import math
from typing import Final

import torch

from insta_runtime.types import Bytes, Float32

EQUAL: Final = 1e-10
"""Mean squared error below which images count as equal, with a PSNR of 100 dB."""
SSIM_MARGIN: Final = 5
"""Width in pixels of the image border for which `ssim_map` has no value: half of its window."""


def psnr(picture: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of images (H, W, 3) in [0, 1], over the pixels of ``mask`` (H, W) bool if given.

    An empty mask gives NaN, equal images 100 dB.
    """
    error = squared_error(picture, truth)
    mean = float(error.mean() if mask is None else error[mask].mean())
    return 100.0 if mean < EQUAL else -10.0 * math.log10(mean) if not math.isnan(mean) else math.nan


def squared_error(picture: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Squared error of images (H, W, 3), averaged over the channels: (H, W)."""
    return (picture - truth).square().mean(dim=-1)


def ssim_map(picture: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity at each pixel (Wang et al. 2004): Gaussian window 11 x 11, sigma 1.5, mean of the channels.

    Images are (H, W, 3) in [0, 1]; the map is (H - 10, W - 10): only windows inside the image (`SSIM_MARGIN`).
    """
    x = torch.arange(-SSIM_MARGIN, SSIM_MARGIN + 1, dtype=torch.float64)
    kernel = torch.exp(-x.square() / (2.0 * 1.5**2))
    kernel = kernel / kernel.sum()
    a, b = picture.permute(2, 0, 1), truth.permute(2, 0, 1)
    mean_a, mean_b, square_a, square_b, product = convolve(
        torch.cat([a, b, a * a, b * b, a * b]), kernel, kernel
    ).unflatten(0, (5, 3))
    var_a, var_b, covariance = square_a - mean_a.square(), square_b - mean_b.square(), product - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2.0 * mean_a * mean_b + c1) * (2.0 * covariance + c2)
    return (top / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))).mean(0)


def convolve(planes: torch.Tensor, column: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Correlate ``planes`` (N, H, W) with the separable kernel ``column`` (K,) times ``row`` (L,), without padding.

    Returns (N, H - K + 1, W - L + 1).  Computed as a sum of shifted images: fast on any device, and in float32 where a
    library would use TF32.
    """
    for dim, weights in ((1, column.tolist()), (2, row.tolist())):
        length = planes.shape[dim] - len(weights) + 1
        total = planes.narrow(dim, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], 1):
            total.add_(planes.narrow(dim, shift, length), alpha=weight)
        planes = total
    return planes


def over_white(rgba: Float32 | torch.Tensor) -> torch.Tensor:
    """Composite an image (H, W, 4) with premultiplied alpha over white: (H, W, 3) float in [0, 1]."""
    picture = torch.as_tensor(rgba)
    return picture[..., :3] + (1.0 - picture[..., 3:])


def head_mask(alpha: Bytes | torch.Tensor) -> torch.Tensor:
    """Head region (H, W) bool of a matte (H, W) uint8: alpha > 0.5, dilated by 1 % of the longest side."""
    radius = max(1, round(0.01 * max(alpha.shape)))
    inside = (torch.as_tensor(alpha) > 127).float()[None, None]
    return torch.nn.functional.max_pool2d(inside, 2 * radius + 1, stride=1, padding=radius)[0, 0] > 0.5

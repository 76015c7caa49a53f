"""FLIP: perceptual difference of two images that are viewed in alternation.

Implements Andersson, Nilsson, Akenine-Möller, Oskarsson, Åström and Fairchild, *FLIP: A Difference Evaluator
for Alternating Images*, HPG 2020, for images of low dynamic range.  Colour differences, computed after filtering by
the contrast sensitivity of the eye, are increased where edges and points differ.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from insta_runtime.evaluation.metrics import convolve

PIXELS_PER_DEGREE: Final = 67.0
"""Pixels per degree of visual angle of a screen 0.7 m wide with 3840 pixels, viewed from 0.7 m, as in the paper."""

# Contrast sensitivity functions (achromatic, red-green, blue-yellow) as sums of Gaussians (height a, variance b).
SENSITIVITY: Final = (((1.0, 0.0047),), ((1.0, 0.0053),), ((34.1, 0.04), (13.5, 0.025)))
COLOUR_POWER, FEATURE_POWER = 0.7, 0.5
KNEE_IN, KNEE_OUT = 0.4, 0.95  # the first share of the largest colour difference maps to the second share of the result
FEATURE_DEGREES = 0.082  # width of an edge or point detector

# Linear sRGB to CIE XYZ (D65), with white at the sum of its columns.
XYZ: Final = (
    (10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794),
    (2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897),
    (1425312 / 73733382, 8788810 / 73733382, 70074185 / 73733382),
)


@torch.no_grad()
def flip_map(picture: torch.Tensor, truth: torch.Tensor, pixels_per_degree: float = PIXELS_PER_DEGREE) -> torch.Tensor:
    """FLIP error map (H, W) in [0, 1] between two sRGB images (H, W, 3) in [0, 1]; 0 where they look the same.

    Symmetric in the images.  Colours outside [0, 1] are clamped.  ``pixels_per_degree`` is the angular resolution of
    the display.
    """
    pair = torch.stack([picture, truth]).clamp(0.0, 1.0).permute(0, 3, 1, 2)  # (2, 3, H, W)
    opponent = _to_opponent(_linear(pair))
    colour = _colour_difference(opponent, pixels_per_degree)
    feature = _feature_difference(opponent[:, 0], pixels_per_degree)
    # Where features differ, the exponent falls towards 0 and the error rises towards 1.
    return colour ** (1.0 - feature)


def _colour_difference(opponent: torch.Tensor, pixels_per_degree: float) -> torch.Tensor:
    """Colour difference (H, W) in [0, 1] of images (2, 3, H, W) in the opponent space of `_to_opponent`."""
    seen = torch.stack([_blurred(opponent[:, i], SENSITIVITY[i], pixels_per_degree) for i in range(3)], dim=1)
    perceptual = _hunt(_to_lab(_from_opponent(seen).clamp(0.0, 1.0)))
    primaries = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=opponent.dtype, device=opponent.device)
    green, blue = _hunt(_to_lab(primaries[..., None, None]))  # the two colours of the screen that differ most
    largest = _hyab(green, blue) ** COLOUR_POWER
    difference = _hyab(*perceptual) ** COLOUR_POWER
    knee = KNEE_IN * largest
    below = KNEE_OUT / knee * difference
    above = KNEE_OUT + (difference - knee) / (largest - knee) * (1.0 - KNEE_OUT)
    return torch.where(difference < knee, below, above).clamp(0.0, 1.0)


def _feature_difference(luminance: torch.Tensor, pixels_per_degree: float) -> torch.Tensor:
    """Difference (H, W) in [0, 1] of edges and points of two luminance images (2, H, W)."""
    sigma = 0.5 * FEATURE_DEGREES * pixels_per_degree
    radius = math.ceil(3.0 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    bell = torch.exp(-x.square() / (2.0 * sigma**2))
    planes = _padded((luminance + 16.0) / 116.0, radius)
    differences = []
    for detector in (-x * bell, (x.square() / sigma**2 - 1.0) * bell):
        # Positive weights sum to 1, negative ones to -1.
        balanced = torch.where(
            detector > 0.0, detector / detector.clamp(min=0.0).sum(), detector / -detector.clamp(max=0.0).sum()
        )
        smooth = bell / bell.sum()
        strength = torch.hypot(convolve(planes, smooth, balanced), convolve(planes, balanced, smooth))
        differences.append((strength[0] - strength[1]).abs())
    return (torch.maximum(*differences) / math.sqrt(2.0)).clamp(0.0, 1.0) ** FEATURE_POWER


def _blurred(planes: torch.Tensor, bells: tuple[tuple[float, float], ...], pixels_per_degree: float) -> torch.Tensor:
    """Planes (N, H, W) filtered by a contrast sensitivity function: a sum of Gaussians whose weights sum to 1."""
    widest = max(b for channel in SENSITIVITY for _, b in channel)
    radius = math.ceil(3.0 * math.sqrt(widest / (2.0 * math.pi**2)) * pixels_per_degree)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64) / pixels_per_degree
    padded = _padded(planes, radius)
    total, weight = torch.zeros_like(planes), 0.0
    for a, b in bells:
        bell = torch.exp(-(math.pi**2) * x.square() / b)
        height = a * math.sqrt(math.pi / b)
        total += height * convolve(padded, bell, bell)
        weight += height * float(bell.sum()) ** 2
    return total / weight


def _padded(planes: torch.Tensor, radius: int) -> torch.Tensor:
    return torch.nn.functional.pad(planes[:, None], (radius,) * 4, mode="replicate")[:, 0]


# Colour spaces, of images (..., 3, H, W).


def _linear(srgb: torch.Tensor) -> torch.Tensor:
    return torch.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


def _matrix() -> torch.Tensor:
    """Linear sRGB to XYZ in parts of the white point, (3, 3) float64 on the CPU."""
    matrix = torch.tensor(XYZ, dtype=torch.float64)
    return matrix / matrix.sum(1, keepdim=True)


def _mixed(matrix: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """Multiply the three channels of each pixel by ``matrix`` (3, 3)."""
    return torch.einsum("ij,...jhw->...ihw", matrix.to(planes), planes)


def _to_opponent(rgb: torch.Tensor) -> torch.Tensor:
    """Y Cx Cz, a linearised L*a*b*: achromatic, red-green, blue-yellow."""
    x, y, z = _mixed(_matrix(), rgb).unbind(-3)
    return torch.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], dim=-3)


def _from_opponent(opponent: torch.Tensor) -> torch.Tensor:
    achromatic, red_green, blue_yellow = opponent.unbind(-3)
    y = (achromatic + 16.0) / 116.0
    xyz = torch.stack([y + red_green / 500.0, y, y - blue_yellow / 200.0], dim=-3)
    return _mixed(torch.linalg.inv(_matrix()), xyz)


def _to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """CIE L*a*b*."""
    xyz = _mixed(_matrix(), rgb)
    delta = 6.0 / 29.0
    x, y, z = torch.where(
        xyz > delta**3, xyz.clamp(min=delta**3) ** (1.0 / 3.0), xyz / (3.0 * delta**2) + 4.0 / 29.0
    ).unbind(-3)
    return torch.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], dim=-3)


def _hunt(lab: torch.Tensor) -> torch.Tensor:
    """Scale chroma by lightness (Hunt effect, Hunt 1952)."""
    lightness, a, b = lab.unbind(-3)
    return torch.stack([lightness, 0.01 * lightness * a, 0.01 * lightness * b], dim=-3)


def _hyab(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """HyAB distance of colours (3, H, W): city block in lightness, Euclidean in chroma (Abasi et al. 2020)."""
    lightness, a, b = (first - second).unbind(-3)
    return lightness.abs() + torch.hypot(a, b)

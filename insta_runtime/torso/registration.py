"""Image registration: the similarity transform that aligns the torso layer with an image.

Inverse compositional Gauss-Newton (Baker and Matthews 2004) on premultiplied colour and matte, coarse to fine, with
Huber weights; pixels where the torso is hidden or was never seen are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from insta_runtime.torso.motion import Similarity

LEVELS = (32, 64, 128)
"""Sides in pixels of the levels of the image pyramid, coarse to fine."""
ROUNDS = 5
"""Maximum number of Gauss-Newton iterations per level."""
HUBER = 0.08
"""Colour difference above which the weight of a pixel decreases (Huber)."""
NOISE = 0.2
"""Standard deviation of a pixel's colour in [0, 1] at the coarsest level, assuming independent pixels."""
TRUST = torch.tensor([0.04, 0.04, 0.03, 0.03], dtype=torch.float64)
"""Prior standard deviations of the motion relative to its start: x and y in image units, turn in radians, log scale."""
SURPRISE = 1.25
"""Factor by which the error of a less likely start is multiplied when the starts are compared."""
ENOUGH = 1e-4
"""Step in image units below which the iteration ends."""


def body_grid(motion: Similarity, side: int, device: torch.device) -> torch.Tensor:
    """Sampling grid (1, side, side, 2) for torch's ``grid_sample``.

    It holds the position x, y in image units of each pixel of a square of ``side`` pixels after ``motion``.
    """
    matrix = torch.as_tensor(motion.matrix(), dtype=torch.float32, device=device)
    return functional.affine_grid(matrix[None], [1, 1, side, side], align_corners=False)


def register(
    layer: torch.Tensor,
    known: torch.Tensor,
    picture: torch.Tensor,
    visible: torch.Tensor,
    starts: Sequence[Similarity],
) -> Similarity:
    """Register the torso layer with an image: returns the similarity transform that aligns ``layer`` with ``picture``.

    Args:
        layer: (4, S, S) premultiplied torso layer in its reference position.
        known: (1, S, S) confidence of the layer in [0, 1].
        picture: (4, S, S) premultiplied image of the torso.
        visible: (1, S, S) visibility of the torso in the image, in [0, 1].
        starts: initial guesses of the motion, the likeliest first; the search starts from the best of them, which is
            also the mean of the prior.
    """
    coarse, *finer = _pyramid(torch.cat([layer * known, known, picture * visible, visible]))
    found = [_refined(coarse, start, start) for start in starts]
    best = min(range(len(starts)), key=lambda i: found[i][1] * (1.0 if i == 0 else SURPRISE))
    start, motion = starts[best], found[best][0]
    for level in finer:
        motion, _ = _refined(level, motion, start)
    return motion


def _refined(both: torch.Tensor, motion: Similarity, start: Similarity) -> tuple[Similarity, float]:
    """``motion`` refined at one pyramid level, and the remaining mean colour difference."""
    level = both.shape[-1]
    model, there, now = both[:4] / both[4:5].clamp_min(1e-3), both[4:5] > 0.5, both[5:].clone()
    now[:4] /= now[4:].clamp_min(1e-3)
    # A pixel is used only if its neighbours are known, which determine its gradient.
    sure = -functional.max_pool2d(-there.float()[None], 3, 1, 1)[0]
    steepest = _steepest(model)
    left = 0.0
    for _ in range(ROUNDS):
        grid = body_grid(motion, level, both.device)
        sampled = functional.grid_sample(now[None], grid, padding_mode="zeros", align_corners=False)[0]
        error = model - sampled[:4]
        most = error.abs().amax(0, keepdim=True)
        weight = sure * sampled[4:].square()
        left = float((weight * most).sum() / weight.sum().clamp_min(1e-6))
        weight = weight * (HUBER / most.clamp_min(HUBER))
        step = _solve(steepest, error, weight, NOISE * level / LEVELS[0], start, motion)
        motion = motion.after(Similarity.from_vector(step))
        if np.abs(step).max() < ENOUGH:
            break
    return motion, left


def _pyramid(pictures: torch.Tensor) -> list[torch.Tensor]:
    """Image pyramid of ``pictures`` (C, S, S) at the `LEVELS` that are not larger, the smallest first."""
    levels = []
    for level in reversed(LEVELS):
        if level <= pictures.shape[-1]:
            pictures = reduced(pictures, level)
            levels.append(pictures)
    return levels[::-1]


def reduced(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Image ``pictures`` (C, S, S) reduced to (C, side, side) pixels by area averaging."""
    factor, rest = divmod(pictures.shape[-1], side)
    if rest:
        return functional.interpolate(pictures[None], (side, side), mode="area")[0]
    if factor == 1:
        return pictures
    rows = pictures.reshape(-1, side, factor, side * factor).sum(2)  # on a CPU twice as fast as `avg_pool2d`
    return rows.view(-1, side, side, factor).sum(3) / factor**2


def _steepest(model: torch.Tensor) -> torch.Tensor:
    """Steepest-descent images (4, C, L, L): derivatives of the model by the four parameters of a similarity."""
    side = model.shape[-1]
    padded = functional.pad(model[None], (1, 1, 1, 1), mode="replicate")[0]
    slope_x = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (side / 4.0)
    slope_y = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * (side / 4.0)
    axis = (torch.arange(side, device=model.device) + 0.5) * (2.0 / side) - 1.0
    x, y = axis[None, None, :], axis[None, :, None]
    return torch.stack([slope_x, slope_y, slope_y * x - slope_x * y, slope_x * x + slope_y * y])


def _solve(
    steepest: torch.Tensor,
    error: torch.Tensor,
    weight: torch.Tensor,
    noise: float,
    start: Similarity,
    motion: Similarity,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Gauss-Newton step (4,) of weighted least squares with the prior around ``start``."""
    rows = steepest.flatten(1)
    weighted = (steepest * weight).flatten(1)
    normal = (weighted @ rows.T).double().cpu() / noise**2
    right = (weighted @ error.flatten()).double().cpu() / noise**2
    away = torch.from_numpy(start.vector() - motion.vector())
    trust = TRUST.square().reciprocal()
    step: np.ndarray[tuple[int], np.dtype[np.float64]] = torch.linalg.solve(
        normal + trust.diag(), right + trust * away
    ).numpy()
    return step

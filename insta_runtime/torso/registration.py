"""Where the torso is in a picture: a similarity that lays the picture over what was learned.

Inverse compositional Gauss-Newton (Baker and Matthews 2004) on premultiplied colour and matte, coarse to fine, with
Huber's weights; what hides the torso, or was never seen, does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from insta_runtime.torso.motion import Similarity

LEVELS = (32, 64, 128)
"""Sides in pixels at which the pictures are compared, in turn."""
ROUNDS = 5
HUBER = 0.08
"""Difference of colour beyond which a pixel is doubted."""
NOISE = 0.2
"""Standard deviation of a pixel at the first level, as if pixels were independent."""
TRUST = torch.tensor([0.04, 0.04, 0.03, 0.03], dtype=torch.float64)
"""How far a torso is likely to move from where it was: x, y, turn, scale."""
SURPRISE = 1.25
"""How much worse an unlikely motion is taken to fit than it does."""
ENOUGH = 1e-4
"""Picture units below which a step ends the search."""


def body_grid(motion: Similarity, side: int, device: torch.device) -> torch.Tensor:
    """(1, side, side, 2): where each pixel of the torso's layer is seen in the picture, for `grid_sample`."""
    matrix = torch.as_tensor(motion.matrix(), dtype=torch.float32, device=device)
    return functional.affine_grid(matrix[None], [1, 1, side, side], align_corners=False)


def register(
    layer: torch.Tensor,
    known: torch.Tensor,
    picture: torch.Tensor,
    visible: torch.Tensor,
    starts: Sequence[Similarity],
) -> Similarity:
    """The motion that carries ``layer`` to ``picture``.

    Args:
        layer: (4, S, S) premultiplied, in the reference's place; known: (1, S, S) in [0, 1], how far it was seen.
        picture: (4, S, S) the torso in the picture, premultiplied; visible: (1, S, S), where it could be seen.
        starts: likely motions, the likeliest first.  The result departs from the best of them only as far as the
            picture says.
    """
    coarse, *finer = _pyramid(torch.cat([layer * known, known, picture * visible, visible]))
    found = [_refined(coarse, start, start) for start in starts]
    best = min(range(len(starts)), key=lambda i: found[i][1] * (1.0 if i == 0 else SURPRISE))
    start, motion = starts[best], found[best][0]
    for level in finer:
        motion, _ = _refined(level, motion, start)
    return motion


def _refined(both: torch.Tensor, motion: Similarity, start: Similarity) -> tuple[Similarity, float]:
    """``motion`` made better at one level, and the mean difference of colour that is left."""
    level = both.shape[-1]
    model, there, now = both[:4] / both[4:5].clamp_min(1e-3), both[4:5] > 0.5, both[5:].clone()
    now[:4] /= now[4:].clamp_min(1e-3)
    # A pixel counts only if its neighbours, which its gradient is taken from, are known.
    sure = -functional.max_pool2d(-there.float()[None], 3, 1, 1)[0]
    steepest = _steepest(model)
    left = 0.0
    for _ in range(ROUNDS):
        grid = body_grid(motion, level, both.device)
        seen = functional.grid_sample(now[None], grid, padding_mode="zeros", align_corners=False)[0]
        error = model - seen[:4]
        most = error.abs().amax(0, keepdim=True)
        weight = sure * seen[4:].square()
        left = float((weight * most).sum() / weight.sum().clamp_min(1e-6))
        weight = weight * (HUBER / most.clamp_min(HUBER))
        step = _solve(steepest, error, weight, NOISE * level / LEVELS[0], start, motion)
        motion = motion.after(Similarity.from_vector(step))
        if np.abs(step).max() < ENOUGH:
            break
    return motion, left


def _pyramid(pictures: torch.Tensor) -> list[torch.Tensor]:
    """``pictures`` (C, S, S) at the `LEVELS` that are no larger, the smallest first."""
    levels = []
    for level in reversed(LEVELS):
        if level <= pictures.shape[-1]:
            pictures = reduced(pictures, level)
            levels.append(pictures)
    return levels[::-1]


def reduced(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """(C, S, S) as (C, side, side): means of the pixels that fall together."""
    factor, rest = divmod(pictures.shape[-1], side)
    if rest:
        return functional.interpolate(pictures[None], (side, side), mode="area")[0]
    if factor == 1:
        return pictures
    rows = pictures.reshape(-1, side, factor, side * factor).sum(2)  # on a CPU twice as fast as `avg_pool2d`
    return rows.view(-1, side, side, factor).sum(3) / factor**2


def _steepest(model: torch.Tensor) -> torch.Tensor:
    """(4, C, L, L): how the model changes as it is moved by each of the four numbers of a similarity."""
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
    """The step, (4,): of weighted least squares, drawn to ``start``."""
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

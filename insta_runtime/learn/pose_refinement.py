"""Training of the pose refinement (`render.pose_refinement`) from the same rays as the field.

Each training frame has learned motions of head, mouth and eyes, optimised together with the field, so that the frames
agree with each other.  A ridge regression predicts these motions from the tracked head states; its prediction is what
is rendered, saved, and applied to states that are no training frames.  The motions of frames decay towards it.
`native.pose_refinement` does the same with kernels.
"""

from __future__ import annotations

import torch

from insta_runtime.learn.adam import BETA1, BETA2
from insta_runtime.render.pose_refinement import pose_features
from insta_runtime.types import HeadState
from insta_runtime.warp.warp import MOTION, PARTS, displacements

INTERVAL = 64
"""Number of training steps between two fits of the regression."""
LEAST_SPREAD = 0.02
"""Number that is added to a feature's standard deviation before the feature is divided by it."""
FULL_AGE = 5.0
"""Number of optimiser steps after which a frame's motion has its full weight in the regression."""
FIXED = -FULL_AGE
"""Value of `FramePoseMotion.age` for a frame whose motion is not learned; it has full weight in the regression."""
BLOCKS = 8
"""Number of intervals of time for the cross-validation that chooses the ridge penalty."""
STRENGTHS = 300.0, 100.0, 30.0, 10.0, 3.0, 1.0
"""Multiples of the ridge penalty that cross-validation compares; of equally good ones the strongest is used."""
REFRESH_DISTANCE = 0.003
"""Change of a frame's head motion, in metres, after which the head mesh of the frame is rasterised again."""


def fit_table(
    features: torch.Tensor, motions: torch.Tensor, ages: torch.Tensor, order: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Fit the ridge regression of motions on features of head states.

    Features are standardised.  For each motion (of head, mouth and eyes; translation and rotation apart) the penalty is
    the multiple of ``penalty`` among `STRENGTHS` with the smallest error in cross-validation over `BLOCKS` intervals.

    Args:
        features: (N, F) `pose_features` of the frames.
        motions: (N, MOTIONS) learned motions of the frames.
        ages: (N,) optimiser steps of each motion, or `FIXED`; weights rise up to `FULL_AGE`.
        order: (N,) numbers that sort the frames by time.
        penalty: smallest ridge penalty, relative to the number of frames.

    Returns:
        The table (F, COLUMNS) of `PoseRefinement`.
    """
    x, y = features.double(), motions.double()
    weight = (ages.double().abs() / FULL_AGE).clamp(1e-6, 1.0)
    weight = (weight / weight.sum())[:, None]
    mean = (weight * x).sum(dim=0)
    scale = (weight * (x - mean).square()).sum(dim=0).sqrt() + LEAST_SPREAD
    mean[0], scale[0] = 0.0, 1.0  # the constant
    z = (x - mean) / scale
    block = order.argsort().argsort() * BLOCKS // len(order)
    own = weight * (block == torch.arange(BLOCKS, device=order.device)[:, None])[:, :, None]  # (BLOCKS, N, 1)
    normal, moment, power = z.T @ (own * z), z.T @ (own * y), (own * y * y).sum(dim=1)
    ridge = torch.ones_like(mean)
    ridge[0] = 1e-6
    ridges = torch.stack([penalty * strength * ridge for strength in STRENGTHS])

    def solved(normal: torch.Tensor, moment: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Weights (..., STRENGTHS, F, MOTIONS) from the moments of a ``part`` (...) of the frames."""
        factor, _ = torch.linalg.cholesky_ex(normal[..., None, :, :] + torch.diag_embed(ridges * part[..., None, None]))
        half = torch.linalg.solve_triangular(factor, moment[..., None, :, :], upper=False)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True)

    whole, all_moments, part = normal.sum(dim=0), moment.sum(dim=0), own.sum(dim=(1, 2))
    guess = solved(whole - normal, all_moments - moment, 1.0 - part)
    error = (guess * (normal[:, None] @ guess - 2.0 * moment[:, None])).sum(dim=2) + power[:, None]
    shape = len(STRENGTHS), -1, 1 + PARTS, MOTION
    best = error.sum(dim=0).view(*shape).sum(dim=(1, 3)).nan_to_num(torch.inf).argmin(dim=0)
    weights = solved(whole, all_moments, torch.ones_like(part[0])).view(*shape)
    chosen = weights.gather(0, best[None, None, :, None].expand(1, *weights.shape[1:]))[0].flatten(1)
    columns = torch.stack([mean, scale, features.amin(dim=0).double(), features.amax(dim=0).double()], dim=1)
    table = torch.cat([columns, chosen], dim=1).float()
    return table.nan_to_num(0.0, 0.0, 0.0)


def predict_motions(table: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Motions (N, MOTIONS) that the regression with the ``table`` (F, COLUMNS) predicts from ``features`` (N, F).

    The same computation as in `PoseRefinement.refine`, with torch.
    """
    mean, scale, low, high = table[:, :4].T
    return (torch.clamp(features, low, high) - mean) / scale @ table[:, 4:]


class FramePoseMotion:
    """Learned motions of one training frame, with the state of its Adam optimiser.

    Attributes:
        now: (MOTIONS,) float32, the present motions of head, mouth and eyes.
        features: (F,) `pose_features` of the tracked head state.
        age: number of optimiser steps, or `FIXED`.

    The motions start at the prediction of ``table`` (F, COLUMNS); with ``fixed`` they are never changed.
    """

    def __init__(self, state: HeadState, table: torch.Tensor, *, fixed: bool = False) -> None:
        self.features = torch.from_numpy(pose_features(state)).to(table.device)
        self.now = predict_motions(table, self.features[None])[0]
        self.age = FIXED if fixed else 0.0
        self._first, self._second = torch.zeros_like(self.now), torch.zeros_like(self.now)

    def step(self, gradient: torch.Tensor, rate: float, predicted: torch.Tensor, fades: float) -> None:
        """Do one Adam step on the motions with their ``gradient`` (MOTIONS,) and the learning rate ``rate``.

        The motions also decay by the share ``fades`` towards ``predicted`` (MOTIONS,).  No effect if they are `FIXED`.
        """
        if self.age < 0.0:
            return
        self.age += 1.0
        self._first.lerp_(gradient, 1.0 - BETA1)
        self._second.lerp_(gradient.square(), 1.0 - BETA2)
        mean = self._first / (1.0 - BETA1**self.age)
        square = self._second / (1.0 - BETA2**self.age)
        self.now = self.now + fades * (predicted - self.now) - rate * mean / (square.sqrt() + 1e-20)


def motion_shift(motions: torch.Tensor, points: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Differentiable displacement (N, 3) in metres of ray samples by the pose motions ``motions`` (MOTIONS,).

    Its value is zero; only its gradient with respect to ``motions`` matters, for fixed camera rays.  When the head
    moves in camera space, the samples of a fixed ray move the opposite way in head space; samples of mouth and eyes
    follow the motions of these parts, weighted by ``masks`` (N, PARTS).  First order in the motions.  ``points`` (N, 3)
    are the samples in head space.
    """
    change = (motions - motions.detach()).view(1 + PARTS, MOTION)
    shares = torch.cat([1.0 - masks.sum(dim=1, keepdim=True), masks], dim=1)
    moves = torch.stack([displacements(motion, points) for motion in change], dim=1)
    return -(shares[:, :, None] * moves).sum(dim=1)

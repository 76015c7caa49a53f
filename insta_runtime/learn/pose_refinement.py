"""Learning where heads really are (`render.registration`), from the same rays as the field.

Every picture has motions of its own, of head, mouth and eyes, learned with the field, so that pictures agree with each
other.  What the tracked states predict of these motions, by a ridge regression, is shown, saved, and applied to states
that were never learned from; motions fade towards it.  `learn.native_registration` does the same by kernels.
"""

from __future__ import annotations

import torch

from insta_runtime.config import RegistrationConfig
from insta_runtime.learn.adam import BETA1, BETA2
from insta_runtime.render.pose_refinement import pose_features
from insta_runtime.types import HeadState
from insta_runtime.warp.warp import MOTION, PARTS, displacements

BEGINS, WARM = 100, 100  # steps before which the field is too young to pull, and over which the rate rises
INTERVAL = 64  # steps between regressions
LEAST_SPREAD = 0.02  # added to the standard deviation that a feature is divided by
YOUNG = 5.0  # steps after which a picture's motion counts in full
HELD = -YOUNG  # the age of a picture whose motion is not learned; it counts in full
BLOCKS = 8  # stretches of time, each of which is predicted from the others to choose a penalty
STRENGTHS = 300.0, 100.0, 30.0, 10.0, 3.0, 1.0  # of penalties; the strongest of those that do as well is taken
MOVED = 0.003  # metres that a head may move before what is known of its picture is found out anew


def regression(
    features: torch.Tensor, motions: torch.Tensor, ages: torch.Tensor, order: torch.Tensor, penalty: float
) -> torch.Tensor:
    """The table (F, COLUMNS) of the ridge regression of ``motions`` (N, MOTIONS) on ``features`` (N, F).

    Pictures count by their ``ages`` (N,), up to `YOUNG`; those that are `HELD`, in full.  Features are standardised,
    and penalties are relative to the number of pictures: for each of the motions that of `STRENGTHS`, times
    ``penalty``, which predicts best what was left out, `BLOCKS` stretches of time in turn as ``order`` (N,) has them.
    """
    x, y = features.double(), motions.double()
    weight = (ages.double().abs() / YOUNG).clamp(1e-6, 1.0)
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
        """(..., STRENGTHS, F, MOTIONS) of what ``part`` (...) of the pictures say."""
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


def predict(table: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The motions (N, MOTIONS) that a table predicts from features (N, F): `Registration.corrected` on a device."""
    mean, scale, low, high = table[:, :4].T
    return (torch.clamp(features, low, high) - mean) / scale @ table[:, 4:]


def rate(config: RegistrationConfig, steps: int, decay: float) -> float:
    """What a motion may change by in step number ``steps``, metres; ``decay`` is that of the field's rate."""
    return config.rate * decay * min(1.0, max(0.0, (steps - BEGINS) / WARM))


class PictureMotion:
    """The motion of one picture for `learn.trainer.Trainer`: the twin of a slot's part of the kernels.

    Attributes:
        now: (MOTIONS,) float32. features: (F,) of its tracked state. age: steps it has had, or `HELD`.
    """

    def __init__(self, state: HeadState, table: torch.Tensor, *, held: bool = False) -> None:
        self.features = torch.from_numpy(pose_features(state)).to(table.device)
        self.now = predict(table, self.features[None])[0]
        self.age = HELD if held else 0.0
        self._first, self._second = torch.zeros_like(self.now), torch.zeros_like(self.now)

    def step(self, gradient: torch.Tensor, rate: float, predicted: torch.Tensor, fades: float) -> None:
        """One step of Adam, and a little of the way to ``predicted`` (MOTIONS,); nothing if it is held."""
        if self.age < 0.0:
            return
        self.age += 1.0
        self._first.lerp_(gradient, 1.0 - BETA1)
        self._second.lerp_(gradient.square(), 1.0 - BETA2)
        mean = self._first / (1.0 - BETA1**self.age)
        square = self._second / (1.0 - BETA2**self.age)
        self.now = self.now + fades * (predicted - self.now) - rate * mean / (square.sqrt() + 1e-20)


def follow(motions: torch.Tensor, points: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Zeros (N, 3) whose gradient by ``motions`` (MOTIONS,) is that of points (N, 3) in head space of a fixed ray.

    As the head moves one way they move the other way in its space, and so do those of mouth and eyes, as far as
    ``masks`` (N, PARTS) go, with their own motions; to first order, about the motions as they are now.
    """
    change = (motions - motions.detach()).view(1 + PARTS, MOTION)
    shares = torch.cat([1.0 - masks.sum(dim=1, keepdim=True), masks], dim=1)
    moves = torch.stack([displacements(motion, points) for motion in change], dim=1)
    return -(shares[:, :, None] * moves).sum(dim=1)

"""Learning where heads really are (`render.registration`), from the same rays as the field.

Every picture has a motion of its own, learned with the field, so that pictures agree with each other.  What the tracked
states predict of these motions, by a ridge regression, is shown, saved, and applied to states that were never learned
from; motions fade towards it.  `learn.native_registration` does the same by kernels.
"""

from __future__ import annotations

import torch

from insta_runtime.config import RegistrationConfig
from insta_runtime.learn.adam import BETA1, BETA2
from insta_runtime.render.registration import LEVER, pose_features
from insta_runtime.types import HeadState

BEGINS, WARM = 100, 100  # steps before which the field is too young to pull, and over which the rate rises
INTERVAL = 64  # steps between regressions
LEAST_SPREAD = 0.02  # added to the standard deviation that a feature is divided by
YOUNG = 5.0  # steps after which a picture's motion counts in full
HELD = -YOUNG  # the age of a picture whose motion is not learned; it counts in full
MOVED = 0.003  # metres that a head may move before what is known of its picture is found out anew


def regression(features: torch.Tensor, motions: torch.Tensor, ages: torch.Tensor, penalty: float) -> torch.Tensor:
    """The table (F, COLUMNS) of the ridge regression of ``motions`` (N, MOTION) on ``features`` (N, F).

    Pictures count by their ``ages`` (N,), up to `YOUNG`; those that are `HELD`, in full.  Features are standardised,
    and ``penalty`` is relative to the number of pictures.
    """
    x, y = features.double(), motions.double()
    weight = (ages.double().abs() / YOUNG).clamp(1e-6, 1.0)
    weight = (weight / weight.sum())[:, None]
    mean = (weight * x).sum(dim=0)
    scale = (weight * (x - mean).square()).sum(dim=0).sqrt() + LEAST_SPREAD
    mean[0], scale[0] = 0.0, 1.0  # the constant
    z = (x - mean) / scale
    normal = z.T @ (weight * z)
    ridge = torch.full_like(mean, penalty)
    ridge[0] = 1e-9
    factor, _ = torch.linalg.cholesky_ex(normal + torch.diag(ridge))
    weights = torch.cholesky_solve(z.T @ (weight * y), factor)
    columns = torch.stack([mean, scale, features.amin(dim=0).double(), features.amax(dim=0).double()], dim=1)
    table = torch.cat([columns, weights], dim=1).float()
    return table.nan_to_num(0.0, 0.0, 0.0)


def predict(table: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The motions (N, MOTION) that a table predicts from features (N, F): `Registration.corrected` on a device."""
    mean, scale, low, high = table[:, :4].T
    return (torch.clamp(features, low, high) - mean) / scale @ table[:, 4:]


def rate(config: RegistrationConfig, steps: int, decay: float) -> float:
    """What a motion may change by in step number ``steps``, metres; ``decay`` is that of the field's rate."""
    return config.rate * decay * min(1.0, max(0.0, (steps - BEGINS) / WARM))


class PictureMotion:
    """The motion of one picture for `learn.trainer.Trainer`: the twin of a slot's part of the kernels.

    Attributes:
        now: (MOTION,) float32. features: (F,) of its tracked state. age: steps it has had, or `HELD`.
    """

    def __init__(self, state: HeadState, table: torch.Tensor, *, held: bool = False) -> None:
        self.features = torch.from_numpy(pose_features(state)).to(table.device)
        self.now = predict(table, self.features[None])[0]
        self.age = HELD if held else 0.0
        self._first, self._second = torch.zeros_like(self.now), torch.zeros_like(self.now)

    def step(self, gradient: torch.Tensor, rate: float, predicted: torch.Tensor, fades: float) -> None:
        """One step of Adam, and a little of the way to ``predicted`` (MOTION,); nothing if it is held."""
        if self.age < 0.0:
            return
        self.age += 1.0
        self._first.lerp_(gradient, 1.0 - BETA1)
        self._second.lerp_(gradient.square(), 1.0 - BETA2)
        mean = self._first / (1.0 - BETA1**self.age)
        square = self._second / (1.0 - BETA2**self.age)
        self.now = self.now + fades * (predicted - self.now) - rate * mean / (square.sqrt() + 1e-20)


def follow(motion: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Zeros (N, 3) whose gradient by ``motion`` (MOTION,) is that of points (N, 3) in head space of a fixed ray.

    As the head moves one way they move the other way in its space; to first order, about the motion as it is now.
    """
    change = motion - motion.detach()
    return -(change[:3] + torch.linalg.cross(change[None, 3:] / LEVER, points))

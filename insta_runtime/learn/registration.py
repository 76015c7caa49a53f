"""Learning where heads really are: `render.registration`, from the same rays as the field, by kernels.

Every picture has a motion of its own, learned with the field, so that pictures agree with each other.  What the tracked
states predict of these motions, by a ridge regression, is shown, saved, and applied to states that were never learned
from; motions fade towards it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from insta_runtime.field.packed import PackedField
from insta_runtime.geometry import rotation_matrix
from insta_runtime.kernels import Call, Kernels
from insta_runtime.learn.device_replay import DeviceReplay
from insta_runtime.render.registration import COLUMNS, MOTION, pose_features
from insta_runtime.types import HeadState

if TYPE_CHECKING:
    from insta_runtime.learn.ray_batch import RayBatch
    from insta_runtime.render.model import AvatarModel

RATE = 2e-4  # metres that Adam moves a picture's head by in a step, at first
MOTION_FADES = 0.01  # part of the way to what is predicted that a motion goes whenever its picture is drawn
BEGINS, WARM = 100, 100  # steps before which the field is too young to pull, and over which the rate rises
INTERVAL = 64  # steps between regressions
RIDGE = 0.03  # of the regression, as a part of the number of pictures
LEAST_SPREAD = 0.02  # added to the standard deviation that a feature is divided by
YOUNG = 5.0  # steps after which a picture's motion counts in full


class HeadRegistration:
    """The corrections of the pictures of a replay, on its device, in buffers that never move.

    Attributes:
        table: of the `Registration` that is shown, (F, COLUMNS).
        motions: (slots, MOTION) of the pictures.
        place: call after pictures were drawn, before rays are. pull, then step: after the field's backward pass.
    """

    def __init__(self, model: AvatarModel, kernels: Kernels) -> None:
        self.model, self.kernels = model, kernels
        self.table = torch.from_numpy(model.registration.table.copy()).to(model.device)

    def prepare(
        self,
        replay: DeviceReplay,
        field: PackedField,
        batch: RayBatch,
        *,
        frames: int,
        slots: torch.Tensor,
        posed: torch.Tensor | None,
        control: torch.Tensor,
    ) -> None:
        """Make buffers for the slots of ``replay``; ``slots`` (frames,) int32 are those of the drawn pictures.

        ``posed`` (frames, S) takes the states of the drawn pictures, None where their rows in the replay are used.
        """
        device, count = self.model.device, replay.slots

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, device=device)

        self._tracked, self._features = zeros(count, 12), zeros(count, len(self.table))
        self.motions, self._predicted = zeros(count, MOTION), zeros(count, MOTION)
        self._moments, self._ages, self._pulls = zeros(count, 2, MOTION), zeros(count, MOTION), zeros(frames, MOTION)
        bind, size = self.kernels.bind, replay.states.shape[1]
        expressions = len(self.model.head.expression_names)
        drawn = expressions, size, frames, slots
        placed = self._tracked, self.motions, replay.states, posed, self._pulls
        self.place: Call = bind("register_heads", *drawn, *placed, items=frames)
        box, samples = self.model.warp.box, batch.samples
        pulled = batch.rays, samples, field.weights, batch.encoded_gradients, float(box.side), frames, self._pulls
        self.pull: Call = bind("pull_heads", *pulled, items=samples.value.capacity)
        learned = self._predicted, self.motions, self._moments, self._ages
        self.step: Call = bind("register_step", frames, slots, self._pulls, control, *learned, items=MOTION)

    def take(self, slot: int, state: HeadState) -> None:
        """A new picture has come into the slot, tracked as ``state``."""
        head = np.concatenate([rotation_matrix(state.rotation).ravel(), state.translation]).astype(np.float32)
        self._tracked[slot] = torch.from_numpy(head)
        self._features[slot] = torch.from_numpy(pose_features(state))
        self.motions[slot] = self._predicted[slot] = predict(self.table, self._features[slot : slot + 1])[0]
        self._moments[slot] = 0.0
        self._ages[slot] = 0.0

    def regress(self, pictures: int) -> None:
        """What the states of the first ``pictures`` slots predict, from the motions they have now."""
        features, motions = self._features[:pictures], self.motions[:pictures]
        self.table.copy_(regression(features, motions, self._ages[:pictures, 0]))
        self._predicted[:pictures] = predict(self.table, features)


def regression(features: torch.Tensor, motions: torch.Tensor, ages: torch.Tensor) -> torch.Tensor:
    """The table (F, COLUMNS) of the ridge regression of ``motions`` (N, MOTION) on ``features`` (N, F).

    Pictures count by their ``ages`` (N,), up to `YOUNG`.
    """
    x, y = features.double(), motions.double()
    weight = (ages.double() / YOUNG).clamp(1e-6, 1.0)
    weight = (weight / weight.sum())[:, None]
    mean = (weight * x).sum(dim=0)
    scale = (weight * (x - mean).square()).sum(dim=0).sqrt() + LEAST_SPREAD
    mean[0], scale[0] = 0.0, 1.0  # the constant
    z = (x - mean) / scale
    normal = z.T @ (weight * z)
    ridge = torch.full_like(mean, RIDGE)
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


def rate(steps: int, decay: float) -> float:
    """What a motion may change by in step number ``steps``, metres; ``decay`` is that of the field's rate."""
    return RATE * decay * min(1.0, max(0.0, (steps - BEGINS) / WARM))

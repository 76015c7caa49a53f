"""Learning where heads really are: `render.registration`, from the same rays as the field, by kernels.

A picture's head moves by what its tracked state predicts (weights that all pictures share) and by a residual of its
own, which fades: what repeats ends in the weights.  Residuals let pictures agree with each other while learning; only
the weights are shown, saved and applied to states that were never learned from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from insta_runtime.field.packed import PackedField
from insta_runtime.geometry import rotation_matrix
from insta_runtime.kernels import Call, Kernels
from insta_runtime.learn.device_replay import DeviceReplay
from insta_runtime.render.registration import FEATURES_OF_POSE, MOTION, pose_features
from insta_runtime.types import HeadState

if TYPE_CHECKING:
    from insta_runtime.learn.ray_batch import RayBatch
    from insta_runtime.render.model import AvatarModel

RATE = 2e-4  # metres that Adam moves a residual by in a step, at first
WEIGHT_RATE = 2e-5  # ... and a weight
RESIDUAL_FADES = 0.01  # part of a residual that is forgotten whenever its picture is drawn
BEGINS, WARM = 100, 100  # steps before which the field is too young to pull, and over which the rate rises


class HeadRegistration:
    """The corrections of the pictures of a replay, on its device, in buffers that never move.

    Attributes:
        averaged: (MOTION, FEATURES_OF_POSE) the running average of the weights: what is shown.
        place: call after pictures were drawn, before rays are. pull, step: after the field's backward pass.
    """

    def __init__(self, model: AvatarModel, kernels: Kernels) -> None:
        self.model, self.kernels = model, kernels
        self.weights = torch.from_numpy(model.registration.weights.copy()).to(model.device)
        self.averaged = self.weights.clone()

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

        self.tracked, self.features, self.residuals = zeros(count, 12), zeros(count, FEATURES_OF_POSE), zeros(count, 6)
        self._moments, self._ages = zeros(count, 2, MOTION), zeros(count + 1)
        self.pulls = zeros(frames, MOTION)
        bind, size = self.kernels.bind, replay.states.shape[1]
        expressions = len(self.model.head.expression_names)
        self.place: Call = bind(
            "register_heads",
            expressions,
            size,
            frames,
            slots,
            self.tracked,
            self.features,
            self.weights,
            self.residuals,
            replay.states,
            posed,
            self.pulls,
            items=frames,
        )
        box, samples = self.model.warp.box, batch.samples
        pulled = batch.rays, samples, field.weights, batch.encoded_gradients, float(box.side), frames, self.pulls
        self.pull: Call = bind("pull_heads", *pulled, items=samples.value.capacity)
        self._step = bind(
            "register_step",
            frames,
            count,
            slots,
            self.features,
            self.pulls,
            control,
            self.weights,
            self.averaged,
            self.residuals,
            self._moments,
            zeros(2, MOTION, FEATURES_OF_POSE),
            self._ages,
            items=MOTION * (1 + FEATURES_OF_POSE),
        )
        self._count = bind("count_ages", frames, count, slots, control, self._ages, items=frames + 1)

    def step(self) -> None:
        self._step()
        self._count()

    def take(self, slot: int, state: HeadState) -> None:
        """A new picture has come into the slot, tracked as ``state``."""
        code = self.model.code(state)
        head = np.concatenate([rotation_matrix(state.rotation).ravel(), state.translation]).astype(np.float32)
        self.tracked[slot] = torch.from_numpy(head)
        self.features[slot] = torch.from_numpy(pose_features(state, code))
        self.residuals[slot] = 0.0
        self._moments[slot] = 0.0
        self._ages[slot] = 0.0


def rates(steps: int, decay: float) -> list[float]:
    """What residuals and weights may move by in step number ``steps``; ``decay`` is that of the field's rate."""
    warm = min(1.0, max(0.0, (steps - BEGINS) / WARM))
    return [RATE * decay * warm, WEIGHT_RATE * decay * warm]

"""The registration of a replay's pictures, by kernels: registration.cu.  Its twin is `registration.PictureMotion`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from insta_runtime.geometry import rotation_matrix
from insta_runtime.learn.pose_refinement import HELD, MOVED, predict, regression
from insta_runtime.native.field import PackedField
from insta_runtime.native.kernels import Call, Kernels
from insta_runtime.native.replay import DeviceReplay
from insta_runtime.render.pose_refinement import MOTIONS, pose_features
from insta_runtime.types import HeadState
from insta_runtime.warp.warp import MOTION

if TYPE_CHECKING:
    from insta_runtime.native.ray_batch import RayBatch
    from insta_runtime.render.model import AvatarModel


class HeadRegistration:
    """The corrections of the pictures of a replay, on its device, in buffers that never move.

    Attributes:
        table: of the `Registration` that is shown, (F, COLUMNS).
        motions: (slots, MOTIONS) of the pictures.
        place: call after pictures were drawn, before rays are. pull, then step: after the field's backward pass.
    """

    def __init__(self, model: AvatarModel, kernels: Kernels) -> None:
        self.model, self.kernels, self.config = model, kernels, model.config.registration
        self.table = torch.from_numpy(model.registration.table.copy()).to(model.device)
        self._taken = 0

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
        self.motions, self._predicted = zeros(count, MOTIONS), zeros(count, MOTIONS)
        self._looked, self._order = zeros(count, MOTION), zeros(count)
        self._moments, self._ages, self._pulls = zeros(count, 2, MOTIONS), zeros(count, MOTIONS), zeros(frames, MOTIONS)
        bind, size = self.kernels.bind, replay.states.shape[1]
        expressions = len(self.model.head.expression_names)
        drawn = expressions, size, frames, slots
        placed = self._tracked, self.motions, replay.states, posed, self._pulls
        self.place: Call = bind("register_heads", *drawn, *placed, items=frames)
        box, samples = self.model.warp.box, batch.samples
        pulled = batch.rays, samples, field.weights, batch.encoded_gradients, float(box.side), frames, self._pulls
        self.pull: Call = bind("pull_heads", *pulled, items=samples.value.capacity)
        learned = self._predicted, self.config.fades, self.motions, self._moments, self._ages
        self.step: Call = bind("register_step", frames, slots, self._pulls, control, *learned, items=MOTIONS)

    def take(self, slot: int, state: HeadState, *, held: bool = False) -> None:
        """A new picture has come into the slot, tracked as ``state``; where it is held its motion is not learned."""
        head = np.concatenate([rotation_matrix(state.rotation).ravel(), state.translation]).astype(np.float32)
        self._tracked[slot] = torch.from_numpy(head)
        self._features[slot] = torch.from_numpy(pose_features(state))
        # The avatar has painted what is held with the correction that it was loaded with.
        table = torch.from_numpy(self.model.registration.table).to(self.table.device) if held else self.table
        self.motions[slot] = self._predicted[slot] = predict(table, self._features[slot : slot + 1])[0]
        self._looked[slot] = self.motions[slot, :MOTION]
        self._taken += 1
        self._order[slot] = self._taken
        self._moments[slot] = 0.0
        self._ages[slot] = HELD if held else 0.0

    def strayed(self, slot: int) -> bool:
        """Whether the head of a picture is no longer where it was when this was last asked and found so."""
        stray = float((self.motions[slot, :MOTION] - self._looked[slot]).abs().max()) > MOVED
        if stray:
            self._looked[slot] = self.motions[slot, :MOTION]
        return stray

    def regress(self, pictures: int) -> None:
        """What the states of the first ``pictures`` slots predict, from the motions they have now."""
        features, motions = self._features[:pictures], self.motions[:pictures]
        self.table.copy_(
            regression(features, motions, self._ages[:pictures, 0], self._order[:pictures], self.config.ridge)
        )
        self._predicted[:pictures] = predict(self.table, features)

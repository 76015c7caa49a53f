"""Training of the pose refinement by kernels (cuda/pose_refinement.cu).

Torch reference: `learn.pose_refinement.FramePoseMotion`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from insta_runtime.geometry import rotation_matrix
from insta_runtime.learn.pose_refinement import FIXED, REFRESH_DISTANCE, fit_table, predict_motions
from insta_runtime.native.kernels import BoundLaunch, Kernels
from insta_runtime.render.pose_refinement import MOTIONS, pose_features
from insta_runtime.types import HeadState
from insta_runtime.warp.warp import MOTION

if TYPE_CHECKING:
    from insta_runtime.native.ray_batch import RayBatch
    from insta_runtime.native.step_context import StepContext
    from insta_runtime.render.model import AvatarModel


class SlotPoseMotions:
    """Learned motions of head, mouth and eyes of all replay slots, in device buffers at fixed addresses.

    Attributes:
        table: (F, COLUMNS) regression table of the `PoseRefinement` that is rendered.
        motions: (slots, MOTIONS) motions of the stored frames.
        apply: launch that writes the refined poses into the head states; to run before rays are sampled.
        gradients: launch that computes the gradients of the motions; to run after the field's backward pass.
        step: launch of one Adam step on the motions; to run after ``gradients``.
    """

    def __init__(self, model: AvatarModel, kernels: Kernels) -> None:
        self.model, self.kernels, self.config = model, kernels, model.config.pose_refinement
        self.table = torch.from_numpy(model.pose_refinement.table.copy()).to(model.device)
        self._added = 0

    def prepare(self, context: StepContext, batch: RayBatch) -> None:
        """Allocate buffers for all slots of the replay and bind the kernels."""
        device, replay, frames, slots = self.model.device, context.replay, context.frames, context.slots
        count, state_size = replay.slots, replay.states.shape[1]
        # Cached poses read the states of the replay; poses of one step have states of their own.
        step_states = None if context.poses.in_place else context.poses.states

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, device=device)

        self._tracked, self._features = zeros(count, 12), zeros(count, len(self.table))
        self.motions, self._predicted = zeros(count, MOTIONS), zeros(count, MOTIONS)
        self._posed_motions, self._order = zeros(count, MOTION), zeros(count)
        self._moments, self._ages = zeros(count, 2, MOTIONS), zeros(count, MOTIONS)
        gradients = zeros(frames, MOTIONS)
        bind, expressions = self.kernels.bind, len(self.model.head.expression_names)
        corrected = self._tracked, self.motions, replay.states, step_states, gradients
        self.apply: BoundLaunch = bind(
            "apply_pose_corrections", expressions, state_size, frames, slots, *corrected, items=frames
        )
        samples, side = batch.samples, float(self.model.warp.box.side)
        backward = batch.rays, samples, context.field.weights, batch.encoded_gradients, side, frames, gradients
        self.gradients: BoundLaunch = bind("pose_gradients", *backward, items=samples.value.capacity)
        adam = self._predicted, self.config.fades, self.motions, self._moments, self._ages
        control = context.inputs.control
        self.step: BoundLaunch = bind("pose_adam_step", frames, slots, gradients, control, *adam, items=MOTIONS)

    def add(self, slot: int, state: HeadState, *, fixed: bool = False) -> None:
        """Initialise the motions of a slot with a new image that was tracked as ``state``.

        ``fixed`` motions are not learned: those of images that the avatar rendered.
        """
        head = np.concatenate([rotation_matrix(state.rotation).ravel(), state.translation]).astype(np.float32)
        self._tracked[slot] = torch.from_numpy(head)
        self._features[slot] = torch.from_numpy(pose_features(state))
        # The avatar rendered these images with the refinement that it was loaded with.
        table = torch.from_numpy(self.model.pose_refinement.table).to(self.table.device) if fixed else self.table
        self.motions[slot] = self._predicted[slot] = predict_motions(table, self._features[slot : slot + 1])[0]
        self._posed_motions[slot] = self.motions[slot, :MOTION]
        self._added += 1
        self._order[slot] = self._added
        self._moments[slot] = 0.0
        self._ages[slot] = FIXED if fixed else 0.0

    def move(self, source: int, target: int) -> None:
        """Copy the motions of slot ``source`` to ``target``, with the state of their training."""
        learned = self.motions, self._predicted, self._posed_motions, self._moments, self._ages
        for values in (self._tracked, self._features, self._order, *learned):
            values[target] = values[source]

    def has_moved(self, slot: int) -> bool:
        """Whether the head of a slot has moved more than `REFRESH_DISTANCE` since the last call that returned True."""
        moved = float((self.motions[slot, :MOTION] - self._posed_motions[slot]).abs().max()) > REFRESH_DISTANCE
        if moved:
            self._posed_motions[slot] = self.motions[slot, :MOTION]
        return moved

    def fit(self, count: int) -> None:
        """Fit the regression table to the present motions of the first ``count`` slots, and update its predictions."""
        features, motions = self._features[:count], self.motions[:count]
        self.table.copy_(fit_table(features, motions, self._ages[:count, 0], self._order[:count], self.config.ridge))
        self._predicted[:count] = predict_motions(self.table, features)

"""`StepContext`: weights, replay, poses, gradients and inputs that the kernels of a training step share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from insta_runtime.native.device_replay import DeviceReplay
    from insta_runtime.native.field import PackedField
    from insta_runtime.native.kernels import Kernels, Struct
    from insta_runtime.native.step_io import StepInputs
    from insta_runtime.native.training_poses import CachedPoses, PerStepPoses
    from insta_runtime.render.model import AvatarModel


@dataclass(frozen=True)
class StepContext:
    """Model, buffers and inputs of the training steps of one `NativeTrainer`.

    Attributes:
        field: weights in kernel layout. occupancy: the ``OccupancyCells`` struct. inputs: inputs of the current step.
        slots: (frames,) int32, the replay slots drawn by ``sample_frames``.
        pose_index: (frames,) int32, the index of each drawn image's pose in ``poses``.
        gradients: (parameters,) float32, gradients of all field parameters times LOSS_SCALE; kernels add to them.
        frames: number of images drawn in a step. rays_per_frame: maximum number of rays drawn of each image.
    """

    model: AvatarModel
    kernels: Kernels
    field: PackedField
    replay: DeviceReplay
    poses: PerStepPoses | CachedPoses
    occupancy: Struct
    inputs: StepInputs
    slots: torch.Tensor
    pose_index: torch.Tensor
    gradients: torch.Tensor
    frames: int
    rays_per_frame: int

"""Interface of the trainers of all backends, and the report of one training step."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from insta_runtime.config import LearnConfig
    from insta_runtime.learn.replay_buffer import ReplayBuffer
    from insta_runtime.learn.schedule import TrainingSchedule
    from insta_runtime.learn.training_state import TrainingState
    from insta_runtime.render.model import AvatarModel
    from insta_runtime.render.renderer import Snapshot
    from insta_runtime.types import HeadState, Observation


@dataclass(frozen=True)
class StepReport:
    """Results of one training step.

    Attributes:
        step: number of training steps so far.
        loss: mean loss of the rays of the step; NaN if the step was skipped or, on a GPU, the loss is not known yet.
        rays, samples: number of rays of the step, and of samples along them.
    """

    step: int
    loss: float
    rays: int
    samples: int


class Trainer(Protocol):
    """Trains an avatar model from observations, on any backend.

    `add` may be called from any thread, everything else from one training thread only.

    Attributes:
        model: the avatar model that is trained.
        config: training configuration of the model.
        schedule: learning rates of the training steps.
        steps: number of training steps so far.
    """

    model: AvatarModel
    config: LearnConfig
    schedule: TrainingSchedule
    steps: int

    @property
    def replay(self) -> ReplayBuffer[Any]:
        """Replay buffer: the stored observations that training steps draw from."""

    def add(self, observation: Observation) -> None:
        """Queue an observation for training.  Thread-safe; never waits."""

    def take_in(self) -> None:
        """Store the queued observations in the replay buffer.  `step` does this first."""

    def lacks(self, state: HeadState) -> bool:
        """Whether a frame that the avatar renders in ``state`` would be stored; False before the first real frame."""

    def add_recalled(self, observation: Observation) -> None:
        """Store a frame that the avatar rendered itself (generative replay)."""

    def set_replay_budget(self, budget: int) -> None:
        """Set the memory budget of the replay buffer, in bytes, and evict frames beyond it; no effect on a GPU.

        The newest frames are kept even if they exceed ``budget``; more than ``learn.replay_mb`` is never used.
        """

    def set_ray_share(self, share: float) -> None:
        """Draw only a ``share`` in [0, 1] of the configured rays in later steps, at least `schedule.MIN_RAY_SHARE`."""

    def step(self) -> StepReport | None:
        """Run one training step; returns None if the replay buffer is empty."""

    def update_occupancy(self) -> None:
        """Update the canonical occupancy grid from the field's density."""

    def on_stream(self) -> contextlib.AbstractContextManager[object]:
        """Context manager in which the trainer's CUDA stream, if it has one, is torch's current stream."""

    def snapshot(self) -> Snapshot:
        """A copy of the averaged weights, occupancy and pose refinement, for display or for saving."""

    def state(self) -> TrainingState:
        """A copy of the complete training state except for the replay buffer."""

    def resume(self, state: TrainingState) -> None:
        """Continue training from the checkpoint ``state``; the replay buffer is kept.

        Raises ValueError if the checkpoint belongs to another model.
        """

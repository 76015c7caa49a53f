"""Learning rates, averaging decay and update intervals of a training, as functions of its step number.

Every trainer follows this schedule.  The module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from insta_runtime.config import AvatarConfig

WARM_UP_STEPS: Final = 20
"""Number of training steps over which the learning rate rises linearly from zero."""
POSE_FIRST_STEP: Final = 100
"""Training step before which head poses are not refined, because the field's gradients are still unreliable."""
POSE_WARM_UP_STEPS: Final = 100
"""Number of training steps over which the learning rate of the head poses rises linearly from zero."""
MIN_RAY_SHARE: Final = 1 / 8
"""Smallest share of the configured rays of a training step that is drawn while the display needs the GPU."""


@dataclass(frozen=True)
class StepRates:
    """Adam learning rates and averaging decay of one training step.

    Attributes:
        table: learning rate of the hash grid.
        networks: learning rate of the networks.
        poses: learning rate of the head-pose corrections, metres.
        averaging_decay: decay of the exponential moving average of the weights.
    """

    table: float
    networks: float
    poses: float
    averaging_decay: float


class TrainingSchedule:
    """Learning-rate schedule of one training: warm-up, exponential decay, and averaging of the weights.

    Attributes:
        progress: position of the learning rate between its initial value (0) and its final value (1); with None it
            follows from the step number (`LearnConfig.decay_steps`).
        rate_factor: factor by which the scheduled learning rates of the field are multiplied.
    """

    def __init__(self, config: AvatarConfig) -> None:
        self._learn, self._poses, self._occupancy = config.learn, config.pose_refinement, config.occupancy
        self.progress: float | None = None
        self.rate_factor = 1.0

    def progress_at(self, steps: int) -> float:
        """Position of the learning rate after ``steps`` training steps: 0 is its initial value, 1 its final value."""
        return self.progress if self.progress is not None else min(1.0, steps / self._learn.decay_steps)

    def rates(self, steps: int) -> StepRates:
        """Learning rates and averaging decay of the training step that follows ``steps`` earlier ones."""
        config = self._learn
        decay = config.final_rate ** self.progress_at(steps)
        table = self.rate_factor * config.learning_rate * decay * min(1.0, (steps + 1) / WARM_UP_STEPS)
        pose_warm_up = min(1.0, max(0.0, (steps - POSE_FIRST_STEP) / POSE_WARM_UP_STEPS))
        return StepRates(
            table=table,
            networks=table * config.network_rate,
            poses=self._poses.rate * decay * pose_warm_up,
            # A young average must forget the random initial weights faster than ``ema`` says.
            averaging_decay=min(config.ema, (1.0 + steps) / (10.0 + steps)),
        )

    def occupancy_interval(self, steps: int) -> int:
        """Number of training steps between updates of the occupancy grid, after ``steps`` training steps.

        It is small at first, when most cells become empty.
        """
        return min(self._occupancy.interval, 4 + steps // 16)

"""Base class of the replay buffers: new observations, epochs, and statistics of the stored frames."""

from __future__ import annotations

from typing import Generic, TypeVar

from insta_runtime.learn.replay_policy import ReplayComposition, ReplayPolicy
from insta_runtime.types import HeadState, Observation

T = TypeVar("T")


class ReplayBuffer(Generic[T]):
    """Base of the replay buffers, which store observations for training; `ReplayPolicy` decides which ones are kept.

    `add` and `start_epoch` may be called from any thread, everything else from the training thread only.

    Attributes:
        policy: decides which frames are stored and drawn; ``T`` is the type of its reference to a stored frame.
    """

    def __init__(self, policy: ReplayPolicy[T]) -> None:
        self.policy = policy

    def __len__(self) -> int:
        """Number of stored frames."""
        return len(self.policy.entries)

    @property
    def composition(self) -> ReplayComposition:
        """Statistics of the stored frames; may be read from any thread."""
        return self.policy.composition

    @property
    def frame_ids(self) -> list[int]:
        """Frame numbers of the stored observations, oldest first."""
        raise NotImplementedError

    def add(self, observation: Observation) -> None:
        """Queue an observation; it is stored when the trainer next takes in new observations."""
        self.policy.offer(observation)

    def start_epoch(self, weight: float = 0.0) -> None:
        """Start a new epoch after a change of appearance: frames stored earlier are drawn less and less.

        ``weight`` in [0, 1] is their final drawing weight relative to new frames; see `ReplayPolicy.start_epoch`.
        """
        self.policy.start_epoch(weight)

    def lacks(self, state: HeadState) -> bool:
        """Whether a frame that the avatar renders in ``state`` would be stored; False before the first real frame."""
        size = self._frame_bytes()
        return size > 0 and self.policy.lacks(state, size)

    def _frame_bytes(self) -> int:
        """Bytes that one more frame takes; 0 before the first frame."""
        raise NotImplementedError

"""Sharing of processor and GPU between tracking, rendering and training: pure functions without clocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from insta_runtime.learn.schedule import MIN_RAY_SHARE

TRAINING_CORES: Final = 0.5
"""Fraction of the processor cores that training may use beside a GPU, for what is not computed there."""
TURN_CORES: Final = 4
"""Number of processor cores from which tracking and rendering on the processor run at the same time."""


def training_pause(step_s: float, duty: float) -> float:
    """Seconds to pause after a training step of ``step_s``, so that training takes ``duty`` of its thread's time."""
    return step_s * (1.0 - duty) / duty


def ray_part(part: float, load: float) -> float:
    """Fraction of its rays that a training step may use on the GPU of the display.

    ``part`` is the fraction so far, ``load`` the time of the last frame as a fraction of its budget.  A frame must not
    take more than half of its budget, because a training step that has begun is not interrupted.
    """
    return max(MIN_RAY_SHARE, 0.8 * part) if load > 0.5 else min(1.0, 1.05 * part)


@dataclass(frozen=True)
class CpuShare:
    """Shares of the processor.

    Attributes:
        render_threads: torch threads of rendering.
        train_threads: torch threads of training.
        duty: fraction of its thread's time that training takes.
    """

    render_threads: int
    train_threads: int
    duty: float

    @staticmethod
    def of(cores: int, train_share: float, device: str = "cpu") -> CpuShare:
        """Shares on a machine with ``cores``: training gets ``train_share`` (0..1) of the cores or of the GPU's time,
        rendering the other cores but one."""
        on_cpu = device == "cpu"
        train = max(1, int(cores * (train_share if on_cpu else TRAINING_CORES)))
        duty = train_share * cores / train if on_cpu else train_share
        return CpuShare(max(1, cores - train - 1), train, min(1.0, max(duty, 0.01)))


def take_turns(cores: int, device: str) -> bool:
    """Whether tracking and rendering take turns on a machine with ``cores``.

    On few cores both take twice as long at the same time: there are no more frames, only older ones.
    """
    return device == "cpu" and cores < TURN_CORES

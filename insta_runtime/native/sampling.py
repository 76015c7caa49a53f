"""Packed samples by kernels: the buffers and launches of march.cu.  Its twin is `sampling.march`."""

from __future__ import annotations

import math

import torch

from insta_runtime.config import SamplingConfig
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.posing import PosedHeads


def most_steps(side: float, step: float) -> int:
    """Steps of a ray in a cube of ``side`` metres at most: its diagonal, and two that may lie partly inside."""
    return math.ceil(math.sqrt(3.0) * side / step) + 2


def samples_struct(kernels: Kernels, rays: Struct, side: float, config: SamplingConfig, capacity: int) -> Struct:
    """A Samples struct for ``rays`` in a cube of ``side`` metres, with memory for ``capacity`` steps."""

    def floats(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=kernels.device)

    def ints(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=kernels.device)

    count, max_steps = rays.value.count, most_steps(side, config.step)
    return kernels.struct(
        "Samples",
        first=ints(count),
        steps=ints(count),
        step_ray=ints(capacity),
        step_t=floats(capacity),
        slot=ints(capacity),
        position=floats(capacity, 3),
        direction=floats(capacity, 3),
        masks=floats(capacity, 2),
        frame=ints(capacity),
        totals=ints(4),
        histogram=ints(max_steps + 1),
        capacity=capacity,
        max_steps=max_steps,
        max_samples=config.max_samples,
    )


class PackedSamples:
    """Samples of the rays of a Rays struct, in buffers that never move.

    Args:
        rays: of poses of ``heads``. space: which canonical cells are occupied.
        capacity: steps in marked cells that there is memory for; beyond, the farthest steps of the longest rays go.

    Attributes:
        samples: the Samples struct. totals: its int32 (4,): steps, samples, steps dropped, steps a ray may keep.
    """

    def __init__(
        self, kernels: Kernels, heads: PosedHeads, space: Struct, rays: Struct, config: SamplingConfig, capacity: int
    ) -> None:
        self.kernels, self.heads, self.space, self.rays, self.config = kernels, heads, space, rays, config
        self.capacity = capacity
        self.samples = samples_struct(kernels, rays, heads.head.value.side, config, capacity)
        self.totals = self.samples.tensor("totals")

    def run(self) -> None:
        """Sample the rays as they are now, in the heads as they are posed now."""
        launch, head, poses, rays, samples = (
            self.kernels.launch,
            self.heads.head,
            self.heads.poses,
            self.rays,
            self.samples,
        )
        count, step = rays.value.count, self.config.step
        launch("clear_samples", samples, items=samples.value.max_steps + 1)
        launch("count_steps", head, poses, rays, step, samples, items=count)
        launch("fit_capacity", samples, items=32)
        launch("list_steps", head, poses, rays, step, samples, items=count)
        launch("warp_samples", head, poses, self.space, rays, samples, items=self.capacity)

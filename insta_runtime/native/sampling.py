"""Packed samples of rays by kernels (cuda/march.cu).  Torch reference: `render.sampling.march`."""

from __future__ import annotations

import math

import torch

from insta_runtime.config import SamplingConfig
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.posing import PosedHeads


def max_ray_steps(side: float, step: float) -> int:
    """Maximum number of steps of a ray in a cube of ``side`` metres: its diagonal, and two that lie partly inside."""
    return math.ceil(math.sqrt(3.0) * side / step) + 2


def rays_struct(kernels: Kernels, count: int) -> Struct:
    """A ``Rays`` struct with buffers for ``count`` rays."""

    def floats(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=kernels.device)

    return kernels.struct(
        "Rays",
        origin=floats(count, 4),
        direction=floats(count, 4),
        offset=floats(count),
        frame=torch.zeros(count, dtype=torch.int32, device=kernels.device),
        count=count,
    )


def samples_struct(kernels: Kernels, rays: Struct, side: float, config: SamplingConfig, capacity: int) -> Struct:
    """A ``Samples`` struct for ``rays`` in a cube of ``side`` metres, with buffers for ``capacity`` steps."""

    def floats(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=kernels.device)

    def ints(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=kernels.device)

    count, max_steps = rays.value.count, max_ray_steps(side, config.step)
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
    """Samples along the rays of a ``Rays`` struct, in buffers at fixed addresses.

    Args:
        heads: posed heads whose bands the rays march through.
        occupancy: the ``OccupancyCells`` struct; samples lie in its occupied cells.
        rays: the ``Rays`` struct; its frames are indices of poses of ``heads``.
        capacity: maximum number of steps in marked cells; beyond it the farthest steps of the longest rays are dropped.

    Attributes:
        samples: the ``Samples`` struct.
        totals: (4,) int32 steps, samples, steps dropped for lack of capacity, maximum steps of a ray.
    """

    def __init__(
        self,
        kernels: Kernels,
        heads: PosedHeads,
        occupancy: Struct,
        rays: Struct,
        config: SamplingConfig,
        capacity: int,
    ) -> None:
        self.kernels, self.heads, self.occupancy, self.rays, self.config = kernels, heads, occupancy, rays, config
        self.capacity = capacity
        self.samples = samples_struct(kernels, rays, heads.head.value.side, config, capacity)
        self.totals = self.samples.tensor("totals")

    def run(self) -> None:
        """Sample the present rays in the present poses."""
        launch, rays, samples = self.kernels.launch, self.rays, self.samples
        head, poses = self.heads.head, self.heads.poses
        count, step = rays.value.count, self.config.step
        launch("clear_samples", samples, items=samples.value.max_steps + 1)
        launch("count_steps", head, poses, rays, step, samples, items=count)
        launch("limit_steps", samples, items=32)
        launch("list_steps", head, poses, rays, step, samples, items=count)
        launch("warp_samples", head, poses, self.occupancy, rays, samples, items=self.capacity)

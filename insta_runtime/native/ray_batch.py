"""One batch of training rays on the device: sampling, marching, shading, loss, and gradients of the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from insta_runtime.learn.torch_replay import ray_regions
from insta_runtime.native.field import table_size
from insta_runtime.native.kernels import BoundLaunch, Struct
from insta_runtime.native.posing import head_struct
from insta_runtime.native.sampling import max_ray_steps, rays_struct, samples_struct
from insta_runtime.native.step_context import StepContext

GRID_THREADS: Final = 1024
"""Threads per multiprocessor for the hash grid's gradients; more would only queue for the same atomic additions."""
BACKWARD_THREADS: Final = 512
"""Threads per multiprocessor for the networks' backward pass, whose blocks each end with sums over all weights."""


@dataclass(frozen=True)
class _Targets:
    """What the rays of a batch should see: (rays, 4) rgba, (rays,) depth, (rays,) weight, (rays, 3) background."""

    rgba: torch.Tensor
    depth: torch.Tensor
    weight: torch.Tensor
    background: torch.Tensor


class RayBatch:
    """Buffers of a batch of training rays, and the kernel launches that process it.

    Attributes:
        rays, samples: the ``Rays`` and ``Samples`` structs of the batch.
        encoded_gradients: gradients of the samples' hash-grid features, from the backward pass.
        totals: (4,) int32 steps, samples, steps dropped for lack of capacity, maximum steps of a ray.
        march: launches that sample the rays and list their steps, in order; to run after posing.
        shade: launches from the inverse warp to the gradients, in order; to run after the candidate triangles of the
            cells with listed steps were chosen.
    """

    def __init__(self, context: StepContext) -> None:
        self._context = context
        model, kernels = context.model, context.kernels
        sampling, device = model.config.sampling, model.device
        self._count = count = context.frames * context.rays_per_frame
        side = model.warp.box.side
        self._capacity = capacity = count * min(max_ray_steps(side, sampling.step), sampling.room)
        self._head = head_struct(kernels, model)
        self.rays = rays_struct(kernels, count)
        self.samples: Struct = samples_struct(kernels, self.rays, side, sampling, capacity)
        self.totals = self.samples.tensor("totals")
        radiance = model.config.radiance
        features = radiance.levels * radiance.features
        encoded = torch.empty((capacity, features), dtype=kernels.storage, device=device)
        self.encoded_gradients = torch.empty_like(encoded)
        targets = _Targets(
            *(torch.empty(shape, device=device) for shape in ((count, 4), (count,), (count,), (count, 3)))
        )
        self.march: list[BoundLaunch] = self._bind_march(targets)
        self.shade: list[BoundLaunch] = self._bind_shade(targets, encoded)

    def _bind_march(self, targets: _Targets) -> list[BoundLaunch]:
        context, samples, count = self._context, self.samples, self._count
        model, poses = context.model, context.poses
        config, step = model.config.learn, model.config.sampling.step
        bind, marched = context.kernels.bind, (self._head, poses.poses, self.rays, step, samples)
        drawn = context.inputs.counters, config.seed & 0x7FFFFFFF, context.frames, context.slots, context.pose_index
        view = poses.depth, poses.triangle, ray_regions(model).contiguous()
        shares = config.focus, config.margin, config.mouth_weight, config.mouth_from_step
        outputs = targets.rgba, targets.depth, targets.weight, targets.background
        scene = self._head, poses.poses, context.replay.frames, self.rays
        return [
            bind("sample_rays", *scene, *drawn, *view, *shares, *outputs, items=count),
            bind("clear_samples", samples, items=samples.value.max_steps + 1),
            bind("count_steps", *marched, items=count),
            bind("limit_steps", samples, items=32),
            bind("list_steps", *marched, items=count),
        ]

    def _bind_shade(self, targets: _Targets, encoded: torch.Tensor) -> list[BoundLaunch]:
        context, rays, samples, capacity = self._context, self.rays, self.samples, self._capacity
        device, config = context.model.device, context.model.config.learn
        step, occupancy = context.model.config.sampling.step, context.occupancy
        density, colour = torch.empty(capacity, device=device), torch.empty((capacity, 3), device=device)
        gradient = torch.empty((capacity, 4), device=device)
        codes = context.poses.codes, context.poses.codes.shape[1]
        bind, weights = context.kernels.bind, context.field.weights
        split = table_size(context.model.config.radiance)
        table_gradients, network_gradients = context.gradients[:split], context.gradients[split:]
        truth = targets.rgba, targets.depth, targets.weight, targets.background
        loss = config.huber, config.mask_weight, config.depth_weight, gradient, context.inputs.loss
        backward = codes[0], codes[1], encoded, gradient, network_gradients, self.encoded_gradients
        packets, multiprocessors = 32 * -(-capacity // 32), _multiprocessors(device)
        return [
            bind("warp_samples", self._head, context.poses.poses, occupancy, rays, samples, items=capacity),
            bind("field_samples", weights, samples, *codes, density, colour, encoded, items=packets),
            bind("composite_loss", rays, samples, density, colour, step, *truth, *loss, items=32 * self._count),
            bind("mark_visible_cells", rays, samples, density, colour, step, occupancy, items=32 * self._count),
            bind("field_backward", weights, samples, *backward, items=BACKWARD_THREADS * multiprocessors),
            bind(
                "grid_backward",
                samples,
                self.encoded_gradients,
                table_gradients,
                items=GRID_THREADS * multiprocessors,
            ),
        ]


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

"""One batch of training rays on the device: drawn, marched, shaded, and led back to gradients of the field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from insta_runtime.learn.replay import ray_regions
from insta_runtime.native.field import PackedField, table_size
from insta_runtime.native.kernels import Call, Kernels, Struct
from insta_runtime.native.posed_frames import GraphFrames, HostFrames
from insta_runtime.native.posing import head_struct
from insta_runtime.native.replay import DeviceReplay
from insta_runtime.native.sampling import most_steps, samples_struct

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

GRID_THREADS = 1024  # of a processor for the table's gradients: more only queue before the same additions
BACKWARD_THREADS = 512  # of a processor for the backward pass, each block of which ends with sums over all networks


class RayBatch:
    """Buffers of a batch, and the calls that fill them, in order.

    Args:
        count: rays. frames: drawn pictures that share them. slots, pose: of `begin_step`, (frames,) int32.
        counters: its inputs. gradients: flat, of all parameters; the calls add to them. loss: (1,), added to.

    Attributes:
        rays, samples: the structs of the batch. encoded_gradients: of the samples' features, from the backward pass.
        totals: (4,) int32 steps, samples, steps that found no room, steps that a ray may keep.
        march, shade: what a step launches between posing and Adam; between them, the cells in which rays take steps
            choose their candidates.
    """

    def __init__(
        self,
        model: AvatarModel,
        kernels: Kernels,
        field: PackedField,
        replay: DeviceReplay,
        posed: GraphFrames | HostFrames,
        space: Struct,
        *,
        count: int,
        frames: int,
        slots: torch.Tensor,
        pose: torch.Tensor,
        counters: torch.Tensor,
        gradients: torch.Tensor,
        loss: torch.Tensor,
    ) -> None:
        config, sampling, device = model.config.learn, model.config.sampling, model.device
        side = model.warp.box.side
        capacity = count * min(most_steps(side, sampling.step), sampling.room)

        def floats(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device=device)

        def ints(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        self.rays = rays = kernels.struct(
            "Rays",
            origin=floats(count, 4),
            direction=floats(count, 4),
            offset=floats(count),
            frame=ints(count),
            count=count,
        )
        self.samples = samples = samples_struct(kernels, rays, side, sampling, capacity)
        self.totals = samples.tensor("totals")
        regions = ray_regions(model).contiguous()
        rgba, depth, weight, background = floats(count, 4), floats(count), floats(count), floats(count, 3)
        density, colour, gradient = floats(capacity), floats(capacity, 3), floats(capacity, 4)
        radiance = model.config.radiance
        encoded = torch.empty((capacity, radiance.levels * radiance.features), dtype=kernels.storage, device=device)
        self.encoded_gradients = encoded_gradients = torch.empty_like(encoded)
        split = table_size(radiance)
        codes, stride = posed.codes, posed.codes.shape[1]
        head, bind, step = head_struct(kernels, model), kernels.bind, sampling.step
        packets = 32 * -(-capacity // 32)
        draw = bind(
            "draw_rays",
            head,
            posed.poses,
            replay.memories,
            rays,
            counters,
            config.seed & 0x7FFFFFFF,
            frames,
            slots,
            pose,
            posed.depth,
            posed.triangle,
            regions,
            config.focus,
            config.margin,
            config.mouth_weight,
            config.mouth_from_step,
            rgba,
            depth,
            weight,
            background,
            items=count,
        )
        self.march: list[Call] = [
            draw,
            bind("clear_samples", samples, items=samples.value.max_steps + 1),
            bind("count_steps", head, posed.poses, rays, step, samples, items=count),
            bind("fit_capacity", samples, items=32),
            bind("list_steps", head, posed.poses, rays, step, samples, items=count),
        ]
        self.shade: list[Call] = [
            bind("warp_samples", head, posed.poses, space, rays, samples, items=capacity),
            bind("field_samples", field.weights, samples, codes, stride, density, colour, encoded, items=packets),
            bind(
                "composite_loss",
                rays,
                samples,
                density,
                colour,
                step,
                rgba,
                depth,
                weight,
                background,
                config.huber,
                config.mask_weight,
                config.depth_weight,
                gradient,
                loss,
                items=32 * count,
            ),
            bind("light_cells", rays, samples, density, colour, step, space, items=32 * count),
            bind(
                "field_backward",
                field.weights,
                samples,
                codes,
                stride,
                encoded,
                gradient,
                gradients[split:],
                encoded_gradients,
                items=BACKWARD_THREADS * _processors(device),
            ),
            bind(
                "grid_backward",
                samples,
                encoded_gradients,
                gradients[:split],
                items=GRID_THREADS * _processors(device),
            ),
        ]


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

"""Buffers for rendered frames of one size, and the kernels that fill them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import torch

from insta_runtime.config import SamplingConfig
from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.native.field import PackedField
from insta_runtime.native.kernels import Graph, Kernels, Struct
from insta_runtime.native.posing import PosedHeads
from insta_runtime.native.sampling import PackedSamples, rays_struct
from insta_runtime.types import Float32

PixelFormat = Literal["rgba", "rgb", "i420", "nv12"]

EARLY_STOP: Final = 1e-3
"""Transmittance below which a ray ends; samples behind it would change no byte of the frame."""
RING: Final = 4
"""Number of frames of one size that may be in flight or in use at a time."""
SAMPLES_PER_PIXEL: Final = 16
"""Average number of samples per pixel for which a canvas has memory."""
COUNTERS: Final = (
    "rays",
    "reserved_samples",
    "rays_cut",
    "samples",
    "cells_dropped",
    "steps_dropped",
    "max_ray_samples",
)
"""Names of the counters that kernels keep for each frame, in the order of cuda/rays.cu."""


def output_shape(pixel_format: PixelFormat, width: int, height: int) -> tuple[int, ...]:
    """Array shape of a frame in ``pixel_format``.  ValueError for an unknown format, or an odd side in 4:2:0."""
    if pixel_format == "rgba":
        return height, width, 4
    if pixel_format == "rgb":
        return height, width, 3
    if pixel_format not in ("i420", "nv12"):
        raise ValueError(f"unknown pixel format {pixel_format!r}: choose rgba, rgb, i420 or nv12")
    if width % 2 or height % 2:
        raise ValueError(f"a frame of {width} x {height} pixels cannot be {pixel_format}: both sides must be even")
    return height * 3 // 2, width


class OutputSlot:
    """Host buffers for the input and output of one frame, in pinned memory if there is a GPU.

    Attributes:
        row: (1, S) float32, the head state. pixels: (4 H W,) uint8, the frame. counters: int32, `COUNTERS`.
        used: whether the counters of the frame have not been collected yet.
        arrived: CUDA event after which the frame is complete; None on a CPU.
    """

    def __init__(self, numbers: int, pixels: int, on_gpu: bool) -> None:
        self.row = torch.zeros((1, numbers), pin_memory=on_gpu)
        self.pixels = torch.zeros(4 * pixels, dtype=torch.uint8, pin_memory=on_gpu)
        self.counters = torch.zeros(len(COUNTERS), dtype=torch.int32, pin_memory=on_gpu)
        self.arrived = torch.cuda.Event() if on_gpu else None
        self.used = False


class Canvas:
    """Renders the posed head in ``heads`` into frames of ``size`` (width, height), in buffers at fixed addresses.

    Args:
        fused: whether to use the fused display kernels (cuda/fused_render.cu); otherwise the chain of march.cu,
            field.cu and composite.cu that training uses, as a reference.
        capacity: maximum number of samples of a frame (in the chain: of steps in marked cells).
        underlay: (F, 4) premultiplied colours of the mesh's triangles (`AvatarModel.underlay`), may change over time.

    Attributes:
        rgba: (H * W, 4) float32 premultiplied, on the device. bytes: (4 H W,) uint8, on the device.
        counters: int32 `COUNTERS`, on the device.
        needed: (words,) int32, one bit for each cell of the posed grid that a ray of the last frame entered.
        slots: ring of host buffers.
    """

    def __init__(
        self,
        kernels: Kernels,
        heads: PosedHeads,
        occupancy: Struct,
        field: PackedField,
        config: SamplingConfig,
        size: tuple[int, int],
        stream: torch.cuda.Stream | None,
        fused: bool,
        capacity: int,
        underlay: torch.Tensor,
    ) -> None:
        self._underlay = underlay
        self.kernels, self.heads, self.occupancy, self.field, self.config = kernels, heads, occupancy, field, config
        self.width, self.height = size
        self.stream, self.capacity = stream, capacity
        self.pixels = self.width * self.height
        self.rgba, self.background = self._floats(self.pixels, 4), self._floats(self.pixels, 3)
        self.bytes = torch.zeros(4 * self.pixels, dtype=torch.uint8, device=kernels.device)
        self.counters, self.needed = self._ints(len(COUNTERS)), self._ints(heads.poses.value.words)
        self.slots = [OutputSlot(heads.states.shape[1], self.pixels, stream is not None) for _ in range(RING)]
        self._slot_number = 0
        self._uploaded: Float32 | torch.Tensor | None = None  # the present background
        self._render = self._fused() if fused else self._unfused()
        self._graphs: dict[PixelFormat | None, Graph] = {}

    def draw(self, pixel_format: PixelFormat | None) -> None:
        """Render into `rgba` and `counters`, and into `bytes` unless the format is None.  One graph launch on a GPU."""
        if pixel_format not in self._graphs:

            def work() -> None:
                self.heads.pose(self.occupancy)
                self._render()
                self._composite_underlay()
                self._write(pixel_format)

            self._graphs[pixel_format] = Graph(work, self.stream)
        self._graphs[pixel_format]()

    def set_background(self, background: Float32 | torch.Tensor | None) -> None:
        """Set the background of later frames: (3,) or (H, W, 3) in [0, 1], black by default.

        An array is uploaded only if it is another object than the last one.  A tensor (H, W, 3) on the device is copied
        in every call.
        """
        if isinstance(background, torch.Tensor):
            self.background.copy_(background.reshape(self.pixels, 3))
            self._uploaded = background
            return
        if background is self._uploaded:
            return
        image = np.zeros(3, dtype=np.float32) if background is None else background
        image = np.broadcast_to(image, (self.height, self.width, 3)).astype(np.float32)
        self.background.copy_(torch.from_numpy(image).view(self.pixels, 3))
        self._uploaded = background

    def next_slot(self) -> OutputSlot:
        """The slot whose last use is longest ago."""
        self._slot_number = (self._slot_number + 1) % RING
        return self.slots[self._slot_number]

    def _write(self, pixel_format: PixelFormat | None) -> None:
        launch, pixels = self.kernels.launch, self.pixels
        if pixel_format == "rgba":
            launch("write_rgba", self.rgba, self.bytes, pixels, items=pixels)
        elif pixel_format == "rgb":
            launch("write_rgb", self.rgba, self.background, self.bytes, pixels, items=pixels)
        elif pixel_format is not None:
            planes = self.rgba, self.background, self.bytes, self.width, self.height, int(pixel_format == "nv12")
            launch("write_yuv", *planes, items=pixels // 4)

    def _depth(self) -> torch.Tensor:
        depth, self._triangle = self.heads.rasterise(self.width, self.height)
        return depth

    def _composite_underlay(self) -> None:
        arguments = self._triangle, self._underlay, self.rgba, self.pixels
        self.kernels.launch("composite_underlay", *arguments, items=self.pixels)

    def _fused(self) -> Callable[[], None]:
        launch, head, poses, step = self.kernels.launch, self.heads.head, self.heads.poses, self.config.step
        pixels = self.pixels
        bundles = self._bundles(self.capacity)
        counters, needed = self.counters, self.needed
        tiles = -(-self.width // 8) * -(-self.height // 4)

        def render() -> None:
            depth = self._depth()
            launch("reset_frame", poses, bundles, counters, needed, items=len(needed))
            view = depth, self.width, self.height
            launch("list_rays", head, poses, *view, step, bundles, counters, needed, self.rgba, items=32 * tiles)
            launch("limit_bundle_samples", bundles, counters, items=32)
            self.heads.choose_candidates(needed)
            march = needed, self.occupancy, bundles, counters, step, self.width
            launch("inverse_warp_rays", head, poses, *march, items=pixels)
            weights = self.field.weights
            launch("render_rays", head, poses, weights, bundles, counters, step, EARLY_STOP, self.rgba, items=pixels)

        return render

    def _bundles(self, capacity: int) -> Struct:
        pixels, most = self.pixels, self.config.max_samples
        return self.kernels.struct(
            "RayBundles",
            rays=self._ints(pixels, 4),
            spans=self._ints(-(-pixels // 32), 2),
            rounds=self._ints(capacity),
            samples=self._floats(capacity, 8),
            histogram=self._ints(most + 1),
            capacity=capacity,
            max_samples=most,
        )

    def _unfused(self) -> Callable[[], None]:
        kernels, head, poses, step = self.kernels, self.heads.head, self.heads.poses, self.config.step
        count, capacity = self.pixels, self.capacity
        rays = rays_struct(kernels, count)
        packed = PackedSamples(kernels, self.heads, self.occupancy, rays, self.config, capacity)
        samples, totals = packed.samples, packed.totals
        density, colour, distance = self._floats(capacity), self._floats(capacity, 3), self._floats(count)
        stride = self.heads.states.shape[1]
        unused = self._bundles(1)
        codes = self.heads.states.view(-1)[stride - CODE_WIDTH :]  # the last numbers of a state

        def render() -> None:
            depth = self._depth()
            launch, field = kernels.launch, self.field.weights
            launch("reset_frame", poses, unused, self.counters, self.needed, items=len(self.needed))
            self.heads.choose_candidates()
            launch("camera_rays", head, poses, depth, rays, step, self.width, self.height, items=count)
            packed.run()
            launch("field_samples", field, samples, codes, stride, density, colour, None, items=capacity)
            launch("composite_rays", rays, samples, density, colour, step, 0.0, self.rgba, distance, items=32 * count)
            self.counters[3:4].copy_(totals[1:2])
            self.counters[5:6].copy_(totals[2:3])

        return render

    def _floats(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=self.kernels.device)

    def _ints(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.kernels.device)

"""The buffers of native pictures of one size, and the kernels that fill them."""

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
from insta_runtime.native.sampling import PackedSamples
from insta_runtime.types import Float32

Format = Literal["rgba", "rgb", "i420", "nv12"]

EARLY_STOP: Final = 1e-3
"""Transmittance below which a ray ends: what lies behind would change no byte."""
RING: Final = 4
"""Pictures that may be under way or in use at a time."""
STEPS_A_PIXEL: Final = 16
"""Memory for samples, on average over all pixels."""
COUNTERS: Final = ("rays", "room", "rays_cut", "samples", "cells_dropped", "steps_dropped", "steps_a_ray")
"""What the kernels count of a picture, in the order of rays.cu."""


def picture_shape(kind: Format, width: int, height: int) -> tuple[int, ...]:
    """The shape of a picture's bytes.  ValueError for an unknown format, or odd sides that it cannot have."""
    if kind == "rgba":
        return height, width, 4
    if kind == "rgb":
        return height, width, 3
    if kind not in ("i420", "nv12"):
        raise ValueError(f"there is no picture format {kind!r}")
    if width % 2 or height % 2:
        raise ValueError(f"a picture of {width} x {height} pixels cannot be {kind}: its sides must be even")
    return height * 3 // 2, width


class Slot:
    """Host memory of one picture, pinned where there is a GPU: what goes in, and what comes out.

    Attributes:
        row: (1, S) float32, the state. picture: (4 H W,) uint8. counters: int32, `COUNTERS`.
        used: whether it holds a picture whose counters nobody has read. arrived: the event after which it is whole.
    """

    def __init__(self, numbers: int, pixels: int, on_gpu: bool) -> None:
        self.row = torch.zeros((1, numbers), pin_memory=on_gpu)
        self.picture = torch.zeros(4 * pixels, dtype=torch.uint8, pin_memory=on_gpu)
        self.counters = torch.zeros(len(COUNTERS), dtype=torch.int32, pin_memory=on_gpu)
        self.arrived = torch.cuda.Event() if on_gpu else None
        self.used = False


class Canvas:
    """Draws the pose in ``heads`` as ``width`` x ``height`` pixels, into buffers that never move.

    Args:
        fused: the display path (fused_render.cu); else the chain of march.cu, field.cu and composite.cu, its proof.
        capacity: samples that there is memory for; in the chain, steps in marked cells.
        underlay: (F, 4), `AvatarModel.underlay`; may be written to between pictures.

    Attributes:
        rgba: (H * W, 4) float32 premultiplied. bytes: (4 H W,) uint8. counters: int32, `COUNTERS`; on the device.
        wanted: (words,) int32, a bit for each cell of the posed grid that a ray of the last picture needed.
        slots: the ring.
    """

    def __init__(
        self,
        kernels: Kernels,
        heads: PosedHeads,
        space: Struct,
        field: PackedField,
        config: SamplingConfig,
        size: tuple[int, int],
        stream: torch.cuda.Stream | None,
        fused: bool,
        capacity: int,
        underlay: torch.Tensor,
    ) -> None:
        self._underlay = underlay
        self.kernels, self.heads, self.space, self.field, self.config = kernels, heads, space, field, config
        self.width, self.height = size
        self.stream, self.capacity = stream, capacity
        self.pixels = self.width * self.height
        self.rgba, self.background = self._floats(self.pixels, 4), self._floats(self.pixels, 3)
        self.bytes = torch.zeros(4 * self.pixels, dtype=torch.uint8, device=kernels.device)
        self.counters, self.wanted = self._ints(len(COUNTERS)), self._ints(heads.poses.value.words)
        self.slots = [Slot(heads.states.shape[1], self.pixels, stream is not None) for _ in range(RING)]
        self._turn = 0
        self._backdrop: Float32 | torch.Tensor | None = None
        self._march = self._fused() if fused else self._unfused()
        self._graphs: dict[Format | None, Graph] = {}

    def draw(self, kind: Format | None) -> None:
        """Fill `rgba` and `counters`, and `bytes` as ``kind`` asks.  One graph replay on a GPU."""
        if kind not in self._graphs:

            def work() -> None:
                self.heads.pose(self.space)
                self._march()
                self._lay_under()
                self._write(kind)

            self._graphs[kind] = Graph(work, self.stream)
        self._graphs[kind]()

    def set_background(self, backdrop: Float32 | torch.Tensor | None) -> None:
        """Composite over ``backdrop``, (3,) or (H, W, 3) in [0, 1], or over black; uploads another array only.

        A tensor is on the device already, (H, W, 3), and copied every time.
        """
        if isinstance(backdrop, torch.Tensor):
            self.background.copy_(backdrop.reshape(self.pixels, 3))
            self._backdrop = backdrop
            return
        if backdrop is self._backdrop:
            return
        picture = np.zeros(3, dtype=np.float32) if backdrop is None else backdrop
        picture = np.broadcast_to(picture, (self.height, self.width, 3)).astype(np.float32)
        self.background.copy_(torch.from_numpy(picture).view(self.pixels, 3))
        self._backdrop = backdrop

    def next_slot(self) -> Slot:
        """The slot that was used longest ago."""
        self._turn = (self._turn + 1) % RING
        return self.slots[self._turn]

    def _write(self, kind: Format | None) -> None:
        launch, pixels = self.kernels.launch, self.pixels
        if kind == "rgba":
            launch("write_rgba", self.rgba, self.bytes, pixels, items=pixels)
        elif kind == "rgb":
            launch("write_rgb", self.rgba, self.background, self.bytes, pixels, items=pixels)
        elif kind is not None:
            planes = self.rgba, self.background, self.bytes, self.width, self.height, int(kind == "nv12")
            launch("write_yuv", *planes, items=pixels // 4)

    def _depth(self) -> torch.Tensor:
        depth, self._triangle = self.heads.rasterise(self.width, self.height)
        return depth

    def _lay_under(self) -> None:
        seen = self._triangle, self._underlay, self.rgba, self.pixels
        self.kernels.launch("lay_under", *seen, items=self.pixels)

    def _fused(self) -> Callable[[], None]:
        launch, head, poses, step = self.kernels.launch, self.heads.head, self.heads.poses, self.config.step
        pixels = self.pixels
        bundles = self._bundles(self.capacity)
        counters, wanted = self.counters, self.wanted
        tiles = -(-self.width // 8) * -(-self.height // 4)

        def march() -> None:
            depth = self._depth()
            launch("begin_picture", poses, bundles, counters, wanted, items=len(wanted))
            view = depth, self.width, self.height
            launch("find_rays", head, poses, *view, step, bundles, counters, wanted, self.rgba, items=32 * tiles)
            launch("fit_bundles", bundles, counters, items=32)
            self.heads.choose(wanted)
            launch("carry_rays", head, poses, wanted, self.space, bundles, counters, step, self.width, items=pixels)
            weights = self.field.weights
            launch("render_rays", head, poses, weights, bundles, counters, step, EARLY_STOP, self.rgba, items=pixels)

        return march

    def _bundles(self, capacity: int) -> Struct:
        pixels, most = self.pixels, self.config.max_samples
        return self.kernels.struct(
            "Bundles",
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
        rays = kernels.struct(
            "Rays",
            origin=self._floats(count, 4),
            direction=self._floats(count, 4),
            offset=self._floats(count),
            frame=self._ints(count),
            count=count,
        )
        packed = PackedSamples(kernels, self.heads, self.space, rays, self.config, capacity)
        samples, totals = packed.samples, packed.totals
        density, colour, distance = self._floats(capacity), self._floats(capacity, 3), self._floats(count)
        stride = self.heads.states.shape[1]
        none = self._bundles(1)
        codes = self.heads.states.view(-1)[stride - CODE_WIDTH :]  # the last numbers of a state

        def march() -> None:
            depth = self._depth()
            launch, field = kernels.launch, self.field.weights
            launch("begin_picture", poses, none, self.counters, self.wanted, items=len(self.wanted))
            self.heads.choose()
            launch("camera_rays", head, poses, depth, rays, step, self.width, self.height, items=count)
            packed.run()
            launch("field_samples", field, samples, codes, stride, density, colour, None, items=capacity)
            launch("composite_rays", rays, samples, density, colour, step, 0.0, self.rgba, distance, items=32 * count)
            self.counters[3:4].copy_(totals[1:2])
            self.counters[5:6].copy_(totals[2:3])

        return march

    def _floats(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=self.kernels.device)

    def _ints(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.kernels.device)

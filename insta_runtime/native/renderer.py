"""Renderer of the native backends: from a head state to the bytes of a frame in host memory.

On a GPU a frame is one launch of a CUDA graph on a stream of high priority; nothing is allocated or waited for.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch

from insta_runtime.native.canvas import COUNTERS, SAMPLES_PER_PIXEL, Canvas, OutputSlot, PixelFormat, output_shape
from insta_runtime.native.field import PackedField, flatten
from insta_runtime.native.kernels import Kernels
from insta_runtime.native.occupancy import occupancy_struct
from insta_runtime.native.posing import PosedHeads, pack_state
from insta_runtime.render.crossfade import Crossfade
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.occupancy import drawable_state
from insta_runtime.render.pose_refinement import PoseRefinement
from insta_runtime.render.renderer import BackgroundRenderer, Snapshot, split_snapshot
from insta_runtime.types import Bytes, Camera, Float32, HeadState, RenderedFrame

MAX_SIZES: Final = 8
"""Number of frame sizes whose buffers are kept."""


@dataclass(frozen=True)
class PinnedFrame:
    """A rendered frame on its way to host memory.

    Its memory is reused after `canvas.RING` later frames of the same size have been requested.

    Attributes:
        format: ``rgba`` (H, W, 4), premultiplied and without background; ``rgb`` (H, W, 3), ``i420`` and ``nv12``
            (3 H / 2, W), over the background.  YCbCr is BT.601 in limited range.
    """

    format: PixelFormat
    frame_id: int
    t_capture_ns: int
    _bytes: Bytes
    _arrived: torch.cuda.Event | None

    @property
    def ready(self) -> bool:
        """Whether the frame has arrived, so that `wait` returns at once."""
        return self._arrived is None or self._arrived.query()

    def wait(self) -> Bytes:
        """Wait until the frame has arrived, and return its bytes, uint8 in the shape of its format."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._bytes


@dataclass(frozen=True)
class RenderCounters:
    """Sums over the frames that `NativeRenderer.frame` has rendered.

    Attributes:
        pictures: number of frames. rays: rays that meet the avatar's band. samples: evaluations of the field.
        rays_cut: rays that ended at ``sampling.max_samples`` before they were opaque.
        cells_dropped: cells of the posed band that exceeded its capacity and are rendered as empty.
        steps_dropped: steps that exceeded the sample memory; the farthest steps of the longest rays are dropped.
    """

    pictures: int = 0
    rays: int = 0
    samples: int = 0
    rays_cut: int = 0
    cells_dropped: int = 0
    steps_dropped: int = 0


class NativeRenderer:
    """Renders snapshots of an avatar model with kernels; holds its own copy of the weights.  For one thread only.

    Has the methods of `render.renderer.Renderer`, and `frame`, which returns bytes that arrive asynchronously.

    Args:
        model: the avatar model with its configuration and initial weights.
        kernels: compiled for the model's field and device.
        fused: whether to use the fused display kernels; otherwise the chain of kernels that training uses.
        capacity: maximum number of samples of a frame (in the chain: of steps in marked cells); None for ample memory.
        urgent: on a GPU, whether the stream has high priority.
        clock: monotonic time in seconds, for the crossfade between snapshots.
    """

    def __init__(
        self,
        model: AvatarModel,
        kernels: Kernels,
        *,
        fused: bool = True,
        capacity: int | None = None,
        urgent: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kernels, self.fused, self._capacity = kernels, fused, capacity
        self._clock, self._fade = clock, Crossfade()
        self._learned = model.code
        self.model = copy.copy(model)
        self.model.code = copy.copy(model.code)
        device = kernels.device
        self._stream = torch.cuda.Stream(device, priority=-int(urgent)) if device.type == "cuda" else None
        with self._on_stream(after=[]):
            self._heads = PosedHeads(kernels, model, 1)
            self._field = PackedField(kernels, model.config.radiance)
            self._target = flatten(model.field.state_dict(), model.config.radiance)
            self._current = self._target.clone()
            self._grid = {name: t.clone() for name, t in self._drawable_state(model.occupancy.state()).items()}
            self._occupancy = occupancy_struct(kernels, model.occupancy, self._grid)
            self._dense = self._occupancy.tensor("dense")
            self._old_grid, self._new_grid = ({n: t.clone() for n, t in self._grid.items()} for _ in range(2))
            # Cells switch at random times of the crossfade, because a cell cannot appear gradually.
            times = torch.rand(len(model.occupancy.cells), generator=torch.Generator().manual_seed(0))
            self._switch_time = times.to(device)
            self._switched = torch.zeros(len(times), dtype=torch.bool, device=device)
            self._underlay, self._next_underlay = model.underlay.clone(), model.underlay.clone()
            self._finish_crossfade()
        self._pose_refinement = model.pose_refinement
        self._before = self.model, self._pose_refinement  # model and pose refinement before the newest snapshot
        self._drawn = False  # whether `frame` has rendered anything that could fade
        self._canvases: dict[tuple[int, int], Canvas] = {}
        self._totals = dict.fromkeys(("pictures", *COUNTERS), 0)

    def load(self, snapshot: Snapshot) -> None:
        """Render this snapshot from now on; `frame` crossfades to it within `crossfade.FADE_S` seconds.

        Frames in flight are not affected.  ValueError if the snapshot belongs to another configuration.
        """
        weights, grid, pose_refinement, underlay = split_snapshot(snapshot)
        if {n: t.shape for n, t in grid.items()} != {n: t.shape for n, t in self._grid.items()}:
            raise ValueError("the snapshot's occupancy grid does not fit the avatar's configuration")
        if self._fade.done >= 0.5:  # otherwise the frames still show mostly the snapshot before the last one
            self._before = self.model, self._pose_refinement
        self.model = copy.copy(self.model)
        self.model.code = copy.copy(self._learned)
        if pose_refinement is not None:
            self._pose_refinement = pose_refinement
        with self._on_stream(after=list(snapshot.values())):
            self._target.copy_(flatten(weights, self.model.config.radiance))
            if underlay is not None:
                self._next_underlay.copy_(underlay)
            for name, tensor in self._drawable_state(grid).items():
                self._old_grid[name].copy_(self._grid[name])
                self._new_grid[name].copy_(tensor)
            if self._drawn:
                self._fade.begin(self._clock())
            else:
                self._finish_crossfade()

    @property
    def fading(self) -> bool:
        """Whether a crossfade is in progress, so that two frames of the same state may differ."""
        return self._fade.under_way

    def render(self, state: HeadState, camera: Camera, frame_id: int = 0) -> RenderedFrame:
        """Render the avatar in ``state`` with ``camera`` as premultiplied RGBA; waits for the frame.

        Renders the newest snapshot: a crossfade in progress is finished first.
        """
        canvas = self._canvas(camera)
        with self._on_stream():
            if self._fade.under_way:
                self._finish_crossfade()
            row = torch.from_numpy(self._state_row(state, camera))
            self._heads.states.copy_(row[None])
            canvas.draw(None)
            rgba = canvas.rgba.clamp(0.0, 1.0).view(camera.height, camera.width, 4).cpu().numpy()
        return RenderedFrame(frame_id, state.t_capture_ns, rgba)

    def frame(
        self,
        state: HeadState,
        camera: Camera,
        format: PixelFormat = "i420",
        background: Float32 | BackgroundRenderer | None = None,
        frame_id: int = 0,
    ) -> PinnedFrame:
        """Render the avatar in ``state`` with ``camera`` as bytes, without waiting for them.

        ``background`` (H, W, 3) or (3,) in [0, 1] is uploaded if it is another array than the last; None is black.  A
        `BackgroundRenderer` is called for every frame, on the renderer's stream.
        Waits only while `canvas.RING` frames are in flight.  ValueError for ``i420`` or ``nv12`` with an odd side.
        """
        shape = output_shape(format, camera.width, camera.height)
        size = math.prod(shape)
        canvas = self._canvas(camera)
        slot = canvas.next_slot()
        self._collect(slot)
        part = self._fade.advance(self._clock()) if self._fade.under_way else 0.0
        slot.row[0] = torch.from_numpy(self._state_row(state, camera))
        with self.kernels.range("frame"), self._on_stream():
            self._advance_crossfade(part)
            canvas.set_background(background() if callable(background) else background)
            self._heads.states.copy_(slot.row, non_blocking=True)
            canvas.draw(format)
            slot.pixels[:size].copy_(canvas.bytes[:size], non_blocking=True)
            slot.counters.copy_(canvas.counters, non_blocking=True)
            if slot.arrived is not None:
                slot.arrived.record()
        slot.used = self._drawn = True
        pixels = slot.pixels[:size].view(shape).numpy()
        return PinnedFrame(format, frame_id, state.t_capture_ns, pixels, slot.arrived)

    def picture(self, state: HeadState, camera: Camera, background: Float32 | BackgroundRenderer) -> Bytes:
        """Render the avatar over ``background`` ((H, W, 3) in [0, 1]): (H, W, 3) uint8; waits for the frame."""
        return self.frame(state, camera, "rgb", background).wait().copy()

    def counters(self) -> RenderCounters:
        """Sums over all frames of `frame` that have arrived.  Does not wait."""
        for canvas in self._canvases.values():
            for slot in canvas.slots:
                if slot.used and (slot.arrived is None or slot.arrived.query()):
                    self._collect(slot)
        return RenderCounters(**{field.name: self._totals[field.name] for field in fields(RenderCounters)})

    def _collect(self, slot: OutputSlot) -> None:
        """Add the counters of the slot's frame to the totals once; waits for a frame in flight."""
        if not slot.used:
            return
        if slot.arrived is not None:
            slot.arrived.synchronize()
        for name, number in zip(("pictures", *COUNTERS), (1, *slot.counters.tolist()), strict=True):
            self._totals[name] += number
        slot.used = False

    @contextmanager
    def _on_stream(self, after: list[torch.Tensor] | None = None) -> Iterator[None]:
        """Run on the renderer's stream; with ``after``, once the caller's stream has written these tensors."""
        if self._stream is None:
            yield
            return
        if after is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.kernels.device))
            for tensor in after:
                if tensor.is_cuda:
                    tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def _canvas(self, camera: Camera) -> Canvas:
        """The canvas for the camera's frame size; the oldest one is dropped if there are too many."""
        size = camera.width, camera.height
        if size not in self._canvases:
            if len(self._canvases) == MAX_SIZES:
                for slot in self._canvases.pop(next(iter(self._canvases))).slots:
                    self._collect(slot)
            sampling = self.model.config.sampling
            # Configurations with many samples per ray need more memory than usual.
            each = max(SAMPLES_PER_PIXEL, min(sampling.max_samples, sampling.room) // 2)
            capacity = self._capacity or each * size[0] * size[1]
            parts = self.kernels, self._heads, self._occupancy, self._field, sampling
            with self._on_stream():
                self._canvases[size] = Canvas(*parts, size, self._stream, self.fused, capacity, self._underlay)
        return self._canvases[size]

    def _state_row(self, state: HeadState, camera: Camera) -> Float32:
        """The packed state with its pose refined; in a crossfade, interpolated between old and new refinement."""
        row = _refined_row(self.model, self._pose_refinement, state, camera)
        if not self._fade.under_way:
            return row
        model, pose_refinement = self._before
        # Rotation matrices are interpolated linearly, too: their angles differ by fractions of a degree.
        old = _refined_row(model, pose_refinement, state, camera)
        return old + np.float32(self._fade.done) * (row - old)

    def _drawable_state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return drawable_state(state) if self.model.config.occupancy.silhouettes else state

    def _threshold_occupancy(self) -> None:
        threshold = self.model.config.occupancy.threshold
        self.kernels.launch("threshold_occupancy", self._occupancy, threshold, items=len(self._dense))

    def _finish_crossfade(self) -> None:
        """Render the target weights from now on."""
        self._current.copy_(self._target)
        self._underlay.copy_(self._next_underlay)
        for name, tensor in self._grid.items():
            tensor.copy_(self._new_grid[name])
        self._field.load(self._current)
        self._threshold_occupancy()
        self._fade.settle()

    def _advance_crossfade(self, part: float) -> None:
        """Move the weights by ``part`` (0 to 1) of their remaining distance to the target."""
        if part == 1.0:
            self._finish_crossfade()
        elif part > 0.0:
            count = len(self._current)
            self.kernels.launch("cross_fade", self._current, self._target, part, count, items=count)
            self._underlay.lerp_(self._next_underlay, part)
            torch.lt(self._switch_time, self._fade.done, out=self._switched)
            for name, tensor in self._grid.items():
                torch.where(self._switched, self._new_grid[name], self._old_grid[name], out=tensor)
            self._field.load(self._current)
            self._threshold_occupancy()


def _refined_row(model: AvatarModel, pose_refinement: PoseRefinement, state: HeadState, camera: Camera) -> Float32:
    """The packed row of a tracked state with its pose refined."""
    refined, apart = pose_refinement.refine(state)
    return pack_state(model, refined, camera, apart)

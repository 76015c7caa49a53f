"""Pictures of an avatar by native kernels, from a head state to bytes in host memory.

On a GPU a picture is one replay of a CUDA graph on a stream of high priority; nothing is allocated and nobody waits.
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

from insta_runtime.native.canvas import COUNTERS, STEPS_A_PIXEL, Canvas, Format, Slot, picture_shape
from insta_runtime.native.field import PackedField, flatten
from insta_runtime.native.kernels import Kernels
from insta_runtime.native.posing import PosedHeads, pack_state
from insta_runtime.render.crossfade import Fade
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.occupancy import shown_cells, space_struct
from insta_runtime.render.pose_refinement import Registration
from insta_runtime.render.renderer import Painter, Snapshot, split_snapshot
from insta_runtime.types import Bytes, Camera, Float32, HeadState, RenderedFrame

SIZES: Final = 8
"""Picture sizes whose buffers are kept."""


@dataclass(frozen=True)
class PinnedPicture:
    """A picture on its way to host memory, which later ones reuse: it stands until `canvas.RING` more were asked for.

    Attributes:
        format: ``rgba`` (H, W, 4) premultiplied, over nothing; ``rgb`` (H, W, 3), ``i420`` and ``nv12`` (3 H / 2, W),
            over the background.  YCbCr is that of BT.601 in limited range.
    """

    format: Format
    frame_id: int
    t_capture_ns: int
    _bytes: Bytes
    _arrived: torch.cuda.Event | None

    @property
    def ready(self) -> bool:
        """Whether `wait` would return at once."""
        return self._arrived is None or self._arrived.query()

    def wait(self) -> Bytes:
        """The picture itself, uint8."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._bytes


@dataclass(frozen=True)
class RenderCounters:
    """Sums over ``pictures`` pictures.

    Attributes:
        rays: that met the avatar's band; samples: at which the field was asked.
        rays_cut: that ``sampling.max_samples`` ended before they were opaque; their farthest samples are missing.
        cells_dropped: cells of the posed band for which there was no room: they look empty.
        steps_dropped: that had no memory, the farthest of the longest rays first.
    """

    pictures: int = 0
    rays: int = 0
    samples: int = 0
    rays_cut: int = 0
    cells_dropped: int = 0
    steps_dropped: int = 0


class NativeRenderer:
    """Renders snapshots of a model; owns its own copy of the weights.  Belongs to one thread.

    Has the interface of `renderer.Renderer`, and `frame`, which gives bytes and does not wait for them.

    Args:
        model: gives the person, the configuration, and the first weights.
        kernels: compiled for the model's field and device.
        fused: the display path; else the chain of kernels that learning uses, which proves it.
        capacity: samples that there is memory for (the chain: steps in marked cells); None for more than pictures need.
        urgent: on a GPU, before others that are not.
        clock: seconds, by which snapshots fade in.
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
        self._clock, self._fade = clock, Fade()
        self._learned = model.code
        self.model = copy.copy(model)
        self.model.code = copy.copy(model.code)
        device = kernels.device
        self._stream = torch.cuda.Stream(device, priority=-int(urgent)) if device.type == "cuda" else None
        with self._on_stream(after=[]):
            self._heads = PosedHeads(kernels, model, 1)
            self._field = PackedField(kernels, model.config.radiance)
            self._target = flatten(model.field.state_dict(), model.config.radiance)
            self._shown = self._target.clone()
            self._grid = {name: tensor.clone() for name, tensor in self._shown_cells(model.occupancy.state()).items()}
            self._space = space_struct(kernels, model.occupancy, self._grid)
            self._dense = self._space.tensor("dense")
            self._old_grid, self._new_grid = ({n: t.clone() for n, t in self._grid.items()} for _ in range(2))
            # When in a fade each cell becomes the new one: one by one, for a cell that appears is seen at once.
            lots = torch.rand(len(model.occupancy.cells), generator=torch.Generator().manual_seed(0))
            self._turn, self._turned = lots.to(device), torch.zeros(len(lots), dtype=torch.bool, device=device)
            self._underlay, self._next_underlay = model.underlay.clone(), model.underlay.clone()
            self._settle()
        self._registration = model.registration
        self._before = self.model, self._registration  # what told states and codes before the newest snapshot
        self._drawn = False  # whether `frame` has shown anything that could fade
        self._canvases: dict[tuple[int, int], Canvas] = {}
        self._totals = dict.fromkeys(("pictures", *COUNTERS), 0)

    def load(self, snapshot: Snapshot) -> None:
        """Show this snapshot from now on; `frame` fades into it (`fading.FADE_S`).

        Pictures that are under way still show what they were asked with.  ValueError if the snapshot is of another
        configuration.
        """
        weights, grid, registration, underlay = split_snapshot(snapshot)
        if {n: t.shape for n, t in grid.items()} != {n: t.shape for n, t in self._grid.items()}:
            raise ValueError("the occupancy does not fit the configuration")
        if self._fade.done >= 0.5:  # else the one that is more of what is shown is the one before
            self._before = self.model, self._registration
        self.model = copy.copy(self.model)
        self.model.code = copy.copy(self._learned)
        if registration is not None:
            self._registration = registration
        with self._on_stream(after=list(snapshot.values())):
            self._target.copy_(flatten(weights, self.model.config.radiance))
            if underlay is not None:
                self._next_underlay.copy_(underlay)
            for name, tensor in self._shown_cells(grid).items():
                self._old_grid[name].copy_(self._grid[name])
                self._new_grid[name].copy_(tensor)
            if self._drawn:
                self._fade.begin(self._clock())
            else:
                self._settle()

    @property
    def fading(self) -> bool:
        """Whether the next `frame` may differ from the last one of the same state."""
        return self._fade.under_way

    def render(self, state: HeadState, camera: Camera, frame_id: int = 0) -> RenderedFrame:
        """The avatar in ``state`` as ``camera`` sees it, over nothing: premultiplied RGBA.

        Shows the newest snapshot, no fade, and waits for the picture.
        """
        canvas = self._canvas(camera)
        with self._on_stream():
            if self._fade.under_way:
                self._settle()
            row = torch.from_numpy(self._row(state, camera))
            self._heads.states.copy_(row[None])
            canvas.draw(None)
            rgba = canvas.rgba.clamp(0.0, 1.0).view(camera.height, camera.width, 4).cpu().numpy()
        return RenderedFrame(frame_id, state.t_capture_ns, rgba)

    def frame(
        self,
        state: HeadState,
        camera: Camera,
        format: Format = "i420",
        background: Float32 | Painter | None = None,
        frame_id: int = 0,
    ) -> PinnedPicture:
        """The avatar in ``state`` as ``camera`` sees it, as bytes.

        ``background`` (H, W, 3) or (3,) in [0, 1] is uploaded if it is another array than the last; None is black.  A
        `Painter` is called each time, on the renderer's stream.
        Waits only while `canvas.RING` pictures are under way.  ValueError for ``i420`` or ``nv12`` with an odd side.
        """
        shape = picture_shape(format, camera.width, camera.height)
        size = math.prod(shape)
        canvas = self._canvas(camera)
        slot = canvas.next_slot()
        self._collect(slot)
        part = self._fade.advance(self._clock()) if self._fade.under_way else 0.0
        slot.row[0] = torch.from_numpy(self._row(state, camera))
        with self.kernels.range("frame"), self._on_stream():
            self._approach(part)
            canvas.set_background(background() if callable(background) else background)
            self._heads.states.copy_(slot.row, non_blocking=True)
            canvas.draw(format)
            slot.picture[:size].copy_(canvas.bytes[:size], non_blocking=True)
            slot.counters.copy_(canvas.counters, non_blocking=True)
            if slot.arrived is not None:
                slot.arrived.record()
        slot.used = self._drawn = True
        return PinnedPicture(
            format, frame_id, state.t_capture_ns, slot.picture[:size].view(shape).numpy(), slot.arrived
        )

    def picture(self, state: HeadState, camera: Camera, background: Float32 | Painter) -> Bytes:
        """The avatar over ``background`` ((H, W, 3) in [0, 1]), (H, W, 3) uint8, once it has arrived."""
        return self.frame(state, camera, "rgb", background).wait().copy()

    def counters(self) -> RenderCounters:
        """What `frame` has counted so far in the pictures that have arrived.  Waits for nothing."""
        for canvas in self._canvases.values():
            for slot in canvas.slots:
                if slot.used and (slot.arrived is None or slot.arrived.query()):
                    self._collect(slot)
        return RenderCounters(**{field.name: self._totals[field.name] for field in fields(RenderCounters)})

    def _collect(self, slot: Slot) -> None:
        """Add the counters of a picture, once; waits for it if it is under way."""
        if not slot.used:
            return
        if slot.arrived is not None:
            slot.arrived.synchronize()
        for name, number in zip(("pictures", *COUNTERS), (1, *slot.counters.tolist()), strict=True):
            self._totals[name] += number
        slot.used = False

    @contextmanager
    def _on_stream(self, after: list[torch.Tensor] | None = None) -> Iterator[None]:
        """Run on the renderer's stream, once the caller's stream has come here if it made ``after``."""
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
        size = camera.width, camera.height
        if size not in self._canvases:
            if len(self._canvases) == SIZES:
                for slot in self._canvases.pop(next(iter(self._canvases))).slots:
                    self._collect(slot)
            sampling = self.model.config.sampling
            # Long rays of short steps ask for more.
            each = max(STEPS_A_PIXEL, min(sampling.max_samples, sampling.room) // 2)
            capacity = self._capacity or each * size[0] * size[1]
            parts = self.kernels, self._heads, self._space, self._field, sampling
            with self._on_stream():
                self._canvases[size] = Canvas(*parts, size, self._stream, self.fused, capacity, self._underlay)
        return self._canvases[size]

    def _row(self, state: HeadState, camera: Camera) -> Float32:
        """What kernels are told of a state: what `pack_state` makes of it; in a fade, between old and new."""
        row = _packed(self.model, self._registration, state, camera)
        if not self._fade.under_way:
            return row
        model, registration = self._before
        # Rotations are among the numbers, but of angles that differ by parts of a degree.
        old = _packed(model, registration, state, camera)
        return old + np.float32(self._fade.done) * (row - old)

    def _shown_cells(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return shown_cells(state) if self.model.config.occupancy.silhouettes else state

    def _publish(self) -> None:
        threshold = self.model.config.occupancy.threshold
        self.kernels.launch("publish_occupancy", self._space, threshold, items=len(self._dense))

    def _settle(self) -> None:
        """Show the target as it is."""
        self._shown.copy_(self._target)
        self._underlay.copy_(self._next_underlay)
        for name, tensor in self._grid.items():
            tensor.copy_(self._new_grid[name])
        self._field.load(self._shown)
        self._publish()
        self._fade.settle()

    def _approach(self, part: float) -> None:
        """Go ``part`` of what is left of the way to the target."""
        if part == 1.0:
            self._settle()
        elif part > 0.0:
            count = len(self._shown)
            self.kernels.launch("cross_fade", self._shown, self._target, part, count, items=count)
            self._underlay.lerp_(self._next_underlay, part)
            torch.lt(self._turn, self._fade.done, out=self._turned)
            for name, tensor in self._grid.items():
                torch.where(self._turned, self._new_grid[name], self._old_grid[name], out=tensor)
            self._field.load(self._shown)
            self._publish()


def _packed(model: AvatarModel, registration: Registration, state: HeadState, camera: Camera) -> Float32:
    """The row of a tracked state, corrected."""
    placed, apart = registration.corrected(state)
    return pack_state(model, placed, camera, apart)

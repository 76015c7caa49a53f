"""Posed heads of a training step: recomputed in every step on a GPU, cached with their replay slots on a CPU.

Posing a head with its band and candidate triangles takes a fraction of a millisecond on a GPU, but on a CPU as long as
the rest of a training step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.native.device_replay import DeviceReplay
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.posing import PosedHeads
from insta_runtime.native.slot_memory import SlotMemory

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

MAX_BAND_AGE: Final = 16
"""Number of occupancy updates after which a cached band is recomputed."""
BAND_CHANGE: Final = 0.1
"""Relative change of the number of occupied cells after which a cached band is recomputed earlier."""
TOUCHED_SHARE: Final = 0.12
"""Typical share of posed cells that are marked in a cached pose; memory of untouched cells is never committed."""


class PerStepPoses:
    """Posed heads of the ``frames`` drawn images of a step, recomputed in every step (on a GPU).

    ``side`` is the side of the images in pixels.

    Attributes:
        in_place: whether poses are numbered by replay slot rather than by their position among the drawn images.
        states: (frames, S) head states of the drawn images, written by ``sample_frames``.
        codes: (frames, CODE_WIDTH) expression codes, written by ``sample_frames``.
        poses, depth, triangle: inputs of ``sample_rays``.
    """

    in_place = False

    def __init__(
        self, model: AvatarModel, kernels: Kernels, replay: DeviceReplay, occupancy: Struct, frames: int, side: int
    ) -> None:
        self._replay, self._occupancy, self._side = replay, occupancy, side
        self._heads, self._single = PosedHeads(kernels, model, frames), PosedHeads(kernels, model, 1)
        self.states, self.poses = self._heads.states, self._heads.poses
        self.depth, self.triangle = self._heads.rasterise(side, side)
        self.codes = torch.zeros((frames, CODE_WIDTH), device=model.device)
        self._needed = torch.zeros((frames, self.poses.value.words), dtype=torch.int32, device=model.device)
        self._kernels = kernels

    def pose(self, slots: torch.Tensor) -> None:  # noqa: ARG002 (the states of the slots are in ``states`` already)
        """Pose the heads of the drawn ``slots`` (frames,) and compute their bands without candidates."""
        self._heads.pose(self._occupancy)
        self._heads.rasterise(self._side, self._side)

    def choose_candidates(self, rays: Struct, samples: Struct) -> None:
        """Choose candidate triangles of the cells in which the listed steps of ``rays`` lie."""
        self._needed.zero_()
        arguments = self._heads.head, self.poses, rays, samples, self._needed
        self._kernels.launch("mark_step_cells", *arguments, items=samples.value.capacity)
        self._heads.choose_candidates(self._needed)

    def invalidate(self, slot: int) -> None:
        """Discard what is cached for ``slot``, whose image was replaced: nothing here."""

    def outdated(self, slots: torch.Tensor) -> list[int]:  # noqa: ARG002
        """The drawn slots that need `pose_slot` before this step: none, new slots are posed as they arrive."""
        return []

    def pose_slot(self, slot: int) -> tuple[Struct, int, torch.Tensor]:
        """Pose the head of one slot: the poses, the index of its pose among them, its mesh depth (side, side)."""
        self._single.states.copy_(self._replay.states[slot : slot + 1])
        self._single.pose(self._occupancy)
        depth, _ = self._single.rasterise(self._side, self._side)
        return self._single.poses, 0, depth[0]

    def on_occupancy_update(self) -> None:
        """Account for changed occupied cells: nothing to do, as nothing is cached."""

    def release(self, first: int, end: int) -> None:
        """Return the memory of cached poses to the system: nothing to do, as none are cached."""


class CachedPoses:
    """Posed heads of all replay slots, computed when a slot is first drawn and then kept (on a CPU).

    Candidates are the expensive part: they are chosen once, for the cells that rays of the image enter, and only these
    cells stay marked.  As more cells become empty the band is recomputed from time to time; if the number of occupied
    cells grows, the whole pose is recomputed.

    ``has_moved`` tells whether the head of a slot was moved by pose refinement since it was posed.  The attributes are
    those of `PerStepPoses`.
    """

    in_place = True

    def __init__(
        self,
        model: AvatarModel,
        kernels: Kernels,
        replay: DeviceReplay,
        occupancy: Struct,
        side: int,
        has_moved: Callable[[int], bool],
    ) -> None:
        self._replay, self._occupancy, self._side, self._kernels = replay, occupancy, side, kernels
        self._has_moved = has_moved
        self._single = PosedHeads(kernels, model, 1)
        slots = replay.slots
        self._memory: list[SlotMemory] = []

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            self._memory.append(SlotMemory((slots, *shape), dtype))
            return self._memory[-1].rows

        self._all: dict[str, Any] = {
            name: zeros(*value.shape[1:], dtype=value.dtype) if isinstance(value, torch.Tensor) else value
            for name, value in self._single.poses.tensors.items()
        }
        self._all["states"], self._all["frames"] = replay.states, slots
        self.states = torch.zeros_like(replay.states[:1])  # unused: kernels read the states of the replay
        self.poses = kernels.struct("PoseBuffers", **self._all)
        self.depth = zeros(side, side, dtype=torch.float32)
        self.triangle = zeros(side, side, dtype=torch.int32)
        self.codes = zeros(CODE_WIDTH, dtype=torch.float32)
        self._needed = zeros(self.poses.value.words, dtype=torch.int32)
        self._step = model.config.sampling.step
        self._heads: dict[int, PosedHeads] = {}
        self._cached: dict[int, _CacheEntry] = {}
        self._updates = 0
        self.on_occupancy_update()

    def outdated(self, slots: torch.Tensor) -> list[int]:
        """The drawn slots that need `pose_slot` before this step: not posed yet, or moved by pose refinement since."""
        return sorted(slot for slot in set(slots.tolist()) if slot not in self._cached or self._has_moved(slot))

    def invalidate(self, slot: int) -> None:
        """Discard the cached pose of ``slot``, whose image was replaced."""
        self._cached.pop(slot, None)

    def release(self, first: int, end: int) -> None:
        """Discard the cached poses of replay slots ``first`` to ``end`` - 1, and free their memory."""
        for slot in range(first, end):
            self._cached.pop(slot, None)
            self._heads.pop(slot, None)
        for memory in self._memory:
            memory.release(first, end)

    def pose(self, slots: torch.Tensor) -> None:
        """Bring the bands of the drawn ``slots`` (frames,) up to date."""
        for slot in set(slots.tolist()):
            cached = self._cached[slot]
            if self._occupied > (1.0 + BAND_CHANGE) * cached.posed_cells:
                self._pose(slot)
                continue
            changed = abs(self._occupied - cached.marked_cells) > BAND_CHANGE * cached.marked_cells
            if changed or self._updates - cached.update >= MAX_BAND_AGE:
                self._all["bits"][slot].zero_()
                head, items = self._heads[slot], self._occupancy.value.count
                self._kernels.launch("forward_warp_cells", head.head, head.poses, self._occupancy, items=items)
                self._all["bits"][slot] &= self._needed[slot]
                self._cached[slot] = _CacheEntry(cached.posed_cells, self._occupied, self._updates)

    def choose_candidates(self, rays: Struct, samples: Struct) -> None:
        """Choose candidate triangles: nothing to do, cached poses have theirs."""

    def pose_slot(self, slot: int) -> tuple[Struct, int, torch.Tensor]:
        """Pose the head of one slot: the poses, the index of its pose among them, its mesh depth (side, side)."""
        if slot not in self._heads:
            self._heads[slot] = self._slot_view(slot)
        self._pose(slot)
        return self.poses, slot, self.depth[slot]

    def on_occupancy_update(self) -> None:
        """Count the occupied cells after an update of the occupancy grid."""
        self._updates += 1
        occupied = self._occupancy.tensors["occupied"]
        assert isinstance(occupied, torch.Tensor)
        self._occupied = int(occupied.sum())

    def _pose(self, slot: int) -> None:
        head, side, needed = self._heads[slot], self._side, self._needed[slot : slot + 1]
        head.pose(self._occupancy)
        depth, triangle = head.rasterise(side, side)
        self.depth[slot], self.triangle[slot] = depth[0], triangle[0]
        needed.zero_()
        view = depth[0], side, side, self._step, needed
        self._kernels.launch("mark_view_cells", head.head, head.poses, *view, items=side * side)
        head.choose_candidates(needed)
        self._all["bits"][slot] &= needed[0]
        self._cached[slot] = _CacheEntry(self._occupied, self._occupied, self._updates)

    def _slot_view(self, slot: int) -> PosedHeads:
        """The posed head of one slot as `PosedHeads` of a single frame that share the memory of all slots."""
        view = copy.copy(self._single)
        own = {n: v[slot : slot + 1] if isinstance(v, torch.Tensor) else v for n, v in self._all.items()}
        view.poses = self._kernels.struct("PoseBuffers", **own | {"frames": 1})
        return view


@dataclass(frozen=True)
class _CacheEntry:
    """Occupied cells when a head was posed and when its band was last recomputed, and the number of that update."""

    posed_cells: int
    marked_cells: int
    update: int


def cached_pose_bytes(model: AvatarModel, side: int) -> int:
    """Approximate memory of one slot of `CachedPoses` in bytes, for images of ``side`` pixels."""
    warp, cells = model.warp, model.warp.resolution**3
    faces, vertices = len(warp.canonical.faces), len(warp.canonical.vertices)
    marked = round(TOUCHED_SHARE * cells)
    return side * side * 8 + faces * 84 + vertices * 76 + cells * 4 + marked * 4 * (warp.config.candidates + 1)

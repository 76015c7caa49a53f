"""The posed heads of a training step: made anew in each step on a GPU, kept with their pictures on a CPU.

Posing a frame, with its band and candidates, takes a GPU a fraction of a millisecond, but a CPU as long as the rest of
a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.posing import PosedHeads
from insta_runtime.native.replay import DeviceReplay

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

STALE = 16  # updates of the occupancy after which a kept band is marked anew
CHANGED = 0.1  # ... or earlier, when so large a part of the occupied cells has come or gone
TOUCHED = 0.12  # of the cells of the posed grid are marked, about: only their candidates take memory


class GraphFrames:
    """Posed heads of ``frames`` drawn pictures of a side of ``side`` pixels.

    Attributes:
        in_place: whether a picture's pose is numbered by its slot, not by its place among the drawn ones.
        states: where the states of the drawn pictures go. codes: (poses, CODE_WIDTH) of the poses.
        poses, depth, triangle: what `draw_rays` reads.
    """

    in_place = False

    def __init__(
        self, model: AvatarModel, kernels: Kernels, replay: DeviceReplay, space: Struct, frames: int, side: int
    ) -> None:
        self._replay, self._space, self._side = replay, space, side
        self._heads, self._one = PosedHeads(kernels, model, frames), PosedHeads(kernels, model, 1)
        self.states, self.poses = self._heads.states, self._heads.poses
        self.depth, self.triangle = self._heads.rasterise(side, side)
        self.codes = torch.zeros((frames, CODE_WIDTH), device=model.device)
        self._wanted = torch.zeros((frames, self.poses.value.words), dtype=torch.int32, device=model.device)
        self._kernels = kernels

    def pose(self, slots: torch.Tensor) -> None:  # noqa: ARG002 (their states have been drawn)
        """Pose the drawn pictures ``slots`` (frames,): their bands, not yet the candidates."""
        self._heads.pose(self._space)
        self._heads.rasterise(self._side, self._side)

    def choose(self, rays: Struct, samples: Struct) -> None:
        """Choose candidates for the cells in which the ``rays`` of the drawn pictures take their listed steps."""
        self._wanted.zero_()
        arguments = self._heads.head, self.poses, rays, samples, self._wanted
        self._kernels.launch("want_steps", *arguments, items=samples.value.capacity)
        self._heads.choose(self._wanted)

    def unseen(self, slots: torch.Tensor) -> list[int]:  # noqa: ARG002
        """Those of the drawn pictures that have not been looked at: none, `look` follows as soon as they come."""
        return []

    def look(self, slot: int) -> tuple[Struct, int, torch.Tensor]:
        """Pose one picture: poses, its number among them, and the depth (side, side) of its mesh."""
        self._one.states.copy_(self._replay.states[slot : slot + 1])
        self._one.pose(self._space)
        depth, _ = self._one.rasterise(self._side, self._side)
        return self._one.poses, 0, depth[0]

    def expire(self) -> None:
        """The occupancy has changed."""


class HostFrames:
    """The same for a CPU: pictures are posed when they are first drawn, and keep their posed heads.

    Candidates are what costs.  They are chosen once, of the cells that rays of the picture enter; only these count as
    marked.  As space empties the band is marked anew from time to time; when it outgrows what it was, all is redone.
    """

    in_place = True

    def __init__(self, model: AvatarModel, kernels: Kernels, replay: DeviceReplay, space: Struct, side: int) -> None:
        self._replay, self._space, self._side, self._kernels = replay, space, side, kernels
        self._one = PosedHeads(kernels, model, 1)
        slots = replay.slots
        self._all: dict[str, Any] = {
            name: _untouched((slots, *value.shape[1:]), value.dtype) if isinstance(value, torch.Tensor) else value
            for name, value in self._one.poses.tensors.items()
        }
        self._all["states"], self._all["frames"] = replay.states, slots
        self.states = torch.zeros_like(replay.states[:1])  # not used: poses lie where their pictures do
        self.poses = kernels.struct("Poses", **self._all)
        self.depth = _untouched((slots, side, side), torch.float32)
        self.triangle = _untouched((slots, side, side), torch.int32)
        self.codes = _untouched((slots, CODE_WIDTH), torch.float32)
        self._wanted = _untouched((slots, self.poses.value.words), torch.int32)
        self._step = model.config.sampling.step
        self._heads: dict[int, PosedHeads] = {}
        self.strayed: Callable[[int], bool] = lambda _: False
        self._known: dict[int, _Known] = {}
        self._epoch = 0
        self.expire()

    def unseen(self, slots: torch.Tensor) -> list[int]:
        """Those of the drawn pictures that have not been looked at, or whose heads have been moved since."""
        return sorted(slot for slot in set(slots.tolist()) if slot not in self._known or self.strayed(slot))

    def forget(self, slot: int) -> None:
        """Another picture has come into the slot."""
        self._known.pop(slot, None)

    def pose(self, slots: torch.Tensor) -> None:
        """See to it that the bands of the drawn pictures ``slots`` (frames,) are right."""
        for slot in set(slots.tolist()):
            known = self._known[slot]
            if self._occupied > (1.0 + CHANGED) * known.posed:
                self._pose(slot)
            elif abs(self._occupied - known.marked) > CHANGED * known.marked or self._epoch - known.epoch >= STALE:
                self._all["bits"][slot].zero_()
                head = self._heads[slot]
                self._kernels.launch("carry_cells", head.head, head.poses, self._space, items=self._space.value.count)
                self._all["bits"][slot] &= self._wanted[slot]
                self._known[slot] = _Known(known.posed, self._occupied, self._epoch)

    def choose(self, rays: Struct, samples: Struct) -> None:
        """Candidates have been chosen."""

    def look(self, slot: int) -> tuple[Struct, int, torch.Tensor]:
        """Pose a new picture: poses, its number among them, and the depth (side, side) of its mesh."""
        if slot not in self._heads:
            self._heads[slot] = self._view(slot)
        self._pose(slot)
        return self.poses, slot, self.depth[slot]

    def expire(self) -> None:
        """The occupancy has changed."""
        self._epoch += 1
        occupied = self._space.tensors["occupied"]
        assert isinstance(occupied, torch.Tensor)
        self._occupied = int(occupied.sum())

    def _pose(self, slot: int) -> None:
        head, side, wanted = self._heads[slot], self._side, self._wanted[slot : slot + 1]
        head.pose(self._space)
        depth, triangle = head.rasterise(side, side)
        self.depth[slot], self.triangle[slot] = depth[0], triangle[0]
        wanted.zero_()
        self._kernels.launch(
            "want_view", head.head, head.poses, depth[0], side, side, self._step, wanted, items=side * side
        )
        head.choose(wanted)
        self._all["bits"][slot] &= wanted[0]
        self._known[slot] = _Known(self._occupied, self._occupied, self._epoch)

    def _view(self, slot: int) -> PosedHeads:
        """The posed head of one slot, as if it were alone."""
        view = copy.copy(self._one)
        own = {n: v[slot : slot + 1] if isinstance(v, torch.Tensor) else v for n, v in self._all.items()}
        view.poses = self._kernels.struct("Poses", **own | {"frames": 1})
        return view


@dataclass(frozen=True)
class _Known:
    """Occupied cells when a head was posed, and when its band was last marked, in which epoch."""

    posed: int
    marked: int
    epoch: int


def host_bytes(model: AvatarModel, side: int) -> int:
    """What `HostFrames` keeps for one picture, about."""
    warp, cells = model.warp, model.warp.resolution**3
    faces, vertices = len(warp.canonical.faces), len(warp.canonical.vertices)
    marked = round(TOUCHED * cells)
    return side * side * 8 + faces * 84 + vertices * 76 + cells * 4 + marked * 4 * (warp.config.candidates + 1)


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take memory only where they are written to."""
    return torch.from_numpy(np.zeros(shape, {torch.float32: np.float32, torch.int32: np.int32}[dtype]))

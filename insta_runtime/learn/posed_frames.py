"""The posed heads of a training step: made anew in each step on a GPU, kept with their pictures on a CPU.

Posing a frame, with its band and candidates, takes a GPU a fraction of a millisecond and 2 MB, but a CPU as long as the
rest of a step.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from insta_runtime.field.conditioning import CODE_WIDTH
from insta_runtime.kernels import Kernels, Struct
from insta_runtime.learn.device_replay import DeviceReplay
from insta_runtime.warp.posing import PosedHeads

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

STALE = 4  # updates of the occupancy after which a kept band is made anew: cells that fill again must not be missed
FILLED = 0.25  # of the candidates' memory is touched, about: a tenth of all cells is marked, BAND_SHARE could be


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
        self.depth, self.triangle = self._heads.draw(side, side)
        self.codes = torch.zeros((frames, CODE_WIDTH), device=model.device)

    def pose(self, slots: torch.Tensor) -> None:  # noqa: ARG002 (their states have been drawn)
        """Pose the drawn pictures ``slots`` (frames,)."""
        self._heads.run(self._space)
        self._heads.draw(self._side, self._side)

    def look(self, slot: int) -> tuple[Struct, int, torch.Tensor]:
        """Pose one picture: poses, its number among them, and the depth (side, side) of its mesh."""
        self._one.states.copy_(self._replay.states[slot : slot + 1])
        self._one.run(self._space)
        depth, _ = self._one.draw(self._side, self._side)
        return self._one.poses, 0, depth[0]

    def expire(self) -> None:
        """The occupancy has changed."""


class HostFrames:
    """The same for a CPU: every picture keeps its posed head, whose band is made anew now and then."""

    in_place = True

    def __init__(self, model: AvatarModel, kernels: Kernels, replay: DeviceReplay, space: Struct, side: int) -> None:
        self._replay, self._space, self._side = replay, space, side
        self._one = PosedHeads(kernels, model, 1)
        slots = replay.slots
        self._all = {
            name: _untouched((slots, *value.shape[1:]), value.dtype) if isinstance(value, torch.Tensor) else value
            for name, value in self._one.poses.tensors.items()
        }
        self._all["states"], self._all["frames"] = replay.states, slots
        self._kernels = kernels
        self.states = torch.zeros_like(replay.states[:1])  # not used: poses lie where their pictures do
        self.poses = kernels.struct("Poses", **self._all)
        self.depth = _untouched((slots, side, side), torch.float32)
        self.triangle = _untouched((slots, side, side), torch.int32)
        self.codes = _untouched((slots, CODE_WIDTH), torch.float32)
        self._heads: dict[int, PosedHeads] = {}
        self._age: dict[int, int] = {}
        self._epoch = 0

    def pose(self, slots: torch.Tensor) -> None:
        """Make the bands of those drawn pictures ``slots`` (frames,) anew that are no longer right."""
        for slot in set(slots.tolist()):
            if self._epoch - self._age[slot] >= STALE:
                self._heads[slot].run(self._space)
                self._age[slot] = self._epoch

    def look(self, slot: int) -> tuple[Struct, int, torch.Tensor]:
        """Pose a new picture: poses, its number among them, and the depth (side, side) of its mesh."""
        if slot not in self._heads:
            self._heads[slot] = self._view(slot)
        head = self._heads[slot]
        head.run(self._space)
        depth, triangle = head.draw(self._side, self._side)
        self.depth[slot], self.triangle[slot] = depth[0], triangle[0]
        self._age[slot] = self._epoch
        return self.poses, slot, self.depth[slot]

    def expire(self) -> None:
        """The occupancy has changed."""
        self._epoch += 1

    def _view(self, slot: int) -> PosedHeads:
        """The posed head of one slot, as if it were alone."""
        view = copy.copy(self._one)
        own: dict[str, Any] = {
            name: value[slot : slot + 1] if isinstance(value, torch.Tensor) else value
            for name, value in self._all.items()
        }
        view.poses = self._kernels.struct("Poses", **own | {"frames": 1})
        return view


def host_bytes(model: AvatarModel, side: int) -> int:
    """What `HostFrames` keeps for one picture, about."""
    warp, cells = model.warp, model.warp.resolution**3
    faces, vertices = len(warp.canonical.faces), len(warp.canonical.vertices)
    marked = round(0.3 * FILLED * cells)
    return side * side * 8 + faces * 84 + vertices * 76 + cells * 4 + marked * 4 * (warp.config.candidates + 1)


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take memory only where they are written to."""
    return torch.from_numpy(np.zeros(shape, {torch.float32: np.float32, torch.int32: np.int32}[dtype]))

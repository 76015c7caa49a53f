"""What is behind the learned head: neck, shoulders and long hair as a flat layer, the room as a blurred still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

import numpy as np
import torch
from torch.nn import functional

from insta_runtime.render.model import AvatarModel
from insta_runtime.torso.motion import INPUTS, MotionModel
from insta_runtime.torso.registration import body_grid
from insta_runtime.types import Float64

ROOM_SIDE: Final = 64
"""Pixels of the room: it is kept as blurred as it is shown."""
SHOULDERS: Final = 0.15
"""Part of the picture's lower edge that a torso takes at least, or the picture shows no shoulders."""
MAX_SIDE: Final = 1024
BEYOND: Final = (0.05, 0.4)
"""Picture units beyond its edge over which a layer goes on as it is there, and at which it has faded away."""
CORNERS: Final = np.array([[-1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])


@dataclass(frozen=True)
class TorsoLayer:
    """A torso as it is drawn and saved.

    Attributes:
        rgba: (4, S, S) float32 premultiplied in [0, 1], the torso in its reference place, also where the head hid it.
        room: (3, `ROOM_SIDE`, `ROOM_SIDE`) float32 in [0, 1], the room behind the person, out of focus.
        motion: where the torso is, from the poses of a head.
    """

    part_name: ClassVar[str] = "torso"

    rgba: torch.Tensor
    room: torch.Tensor
    motion: MotionModel

    @cached_property
    def holds(self) -> bool:
        """Whether there is a torso to be drawn: the pictures showed shoulders."""
        side = self.rgba.shape[-1]
        return float(self.rgba[3, -max(side // 32, 1) :].mean()) >= SHOULDERS

    def draw(self, inputs: Float64, backdrop: torch.Tensor) -> torch.Tensor:
        """The torso over ``backdrop`` (H, H, 3) in [0, 1]: the same shape, on the layer's device.

        ``inputs`` is what `SlowPose` says of the head.  Beyond the pictures that were learned from, the layer goes on
        as it is at their edge, and soon fades.
        """
        side = backdrop.shape[0]
        motion = self.motion.predict(inputs).inverse()
        grid = body_grid(motion, side, self.rgba.device)
        level = next(level for level in self._levels if level.shape[-1] >= side or level is self.rgba)
        if level.is_cuda:  # another stream made it, and may take back its memory
            level.record_stream(torch.cuda.current_stream(level.device))
        torso = functional.grid_sample(level[None], grid, padding_mode="border", align_corners=False)[0]
        torso = torso.permute(1, 2, 0)
        near, far = BEYOND
        if float(abs(motion.matrix() @ CORNERS).max()) > 1.0 + near:
            beyond = grid[0].abs().amax(-1, keepdim=True) - 1.0
            torso = torso * ((far - beyond) / (far - near)).clamp(0.0, 1.0)
        return torch.addcmul(torso[..., :3], 1.0 - torso[..., 3:], backdrop)

    @cached_property
    def _levels(self) -> list[torch.Tensor]:
        """The layer at half its side, a quarter ..., the smallest first: smaller pictures would show jagged edges."""
        levels = [self.rgba]
        while levels[0].shape[-1] >= 128:
            levels.insert(0, functional.avg_pool2d(levels[0][None], 2)[0])
        return levels

    def room_picture(self, side: int) -> torch.Tensor:
        """The room, (side, side, 3), on the layer's device."""
        large = functional.interpolate(self.room[None], (side, side), mode="bicubic", align_corners=False)[0]
        return large.clamp(0.0, 1.0).permute(1, 2, 0).contiguous()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it as float32 tensors on the CPU, by name."""
        motion = {name: torch.from_numpy(getattr(self.motion, name)) for name in ("weights", "middle", "reach")}
        every = {"rgba": self.rgba, "room": self.room, **motion}
        return {name: tensor.cpu().float().contiguous() for name, tensor in every.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], model: AvatarModel) -> TorsoLayer:
        """From what `tensors` gave, on the device of ``model``.  ValueError for anything else."""
        wanted = {
            "rgba": (4, None, None),
            "room": (3, ROOM_SIDE, ROOM_SIDE),
            "weights": (INPUTS + 1, 4),
            "middle": (INPUTS,),
            "reach": (INPUTS,),
        }
        if set(tensors) != set(wanted):
            raise ValueError("its torso is incomplete")
        for name, shape in wanted.items():
            got = tuple(tensors[name].shape)
            if len(got) != len(shape) or any(w is not None and w != g for w, g in zip(shape, got, strict=True)):
                raise ValueError(f"its torso's {name} has shape {list(got)}")
        rgba, room = tensors["rgba"], tensors["room"]
        side = rgba.shape[-1]
        if rgba.shape[-2] != side or not 1 <= side <= MAX_SIDE:
            raise ValueError(f"its torso has {rgba.shape[-2]} x {side} pixels")
        if not all(bool(((part >= 0.0) & (part <= 1.0)).all()) for part in (rgba, room)):
            raise ValueError("its torso has impossible colours")
        weights, middle, reach = (tensors[name].double().numpy() for name in ("weights", "middle", "reach"))
        # A motion that leaves the picture far behind, or turns the torso over, is nobody's.
        if (abs(weights) > 10.0).any() or (abs(middle) > 100.0).any() or not ((reach >= 0.0) & (reach < 100.0)).all():
            raise ValueError("its torso moves impossibly")
        return cls(rgba.to(model.device), room.to(model.device), MotionModel(weights, middle, reach))

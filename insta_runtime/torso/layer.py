"""Torso layer: neck, shoulders and long hair as a flat image behind the head, and a blurred image of the room."""

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
"""Side in pixels of the image of the room; it can be small because the room is rendered blurred."""
SHOULDERS: Final = 0.15
"""Minimum mean opacity of a torso layer along its lower edge; below it the layer shows no shoulders."""
MAX_SIDE: Final = 1024
"""Maximum side in pixels of a torso layer."""
BEYOND: Final = (0.05, 0.4)
"""Distances beyond the layer's edge, in image units (2 across the image), at which the extended edge starts and ends to
fade out."""
CORNERS: Final = np.array([[-1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
"""Corners of the image in homogeneous image units (x and y from -1 to 1), one per column."""


@dataclass(frozen=True)
class TorsoLayer:
    """Torso of one subject, ready for rendering and saving.

    Attributes:
        rgba: (4, S, S) float32 in [0, 1], premultiplied image of the torso in its reference position, completed where
            the head hid it.
        room: (3, `ROOM_SIDE`, `ROOM_SIDE`) float32 in [0, 1], blurred image of the room behind the subject.
        motion: predicts the motion of the torso from head poses.
    """

    part_name: ClassVar[str] = "torso"

    rgba: torch.Tensor
    room: torch.Tensor
    motion: MotionModel

    @cached_property
    def is_visible(self) -> bool:
        """Whether the layer shows shoulders (`SHOULDERS`); if not, it need not be rendered."""
        side = self.rgba.shape[-1]
        return float(self.rgba[3, -max(side // 32, 1) :].mean()) >= SHOULDERS

    def draw(self, inputs: Float64, backdrop: torch.Tensor) -> torch.Tensor:
        """Render the torso over ``backdrop`` (H, H, 3) in [0, 1] on the layer's device; returns the image (H, H, 3).

        ``inputs`` (`motion.INPUTS`,) are those of the head pose from `SlowPose`.  Beyond the edge of the training
        images the layer is extended by its edge colours and fades out (`BEYOND`).
        """
        side = backdrop.shape[0]
        motion = self.motion.predict(inputs).inverse()
        grid = body_grid(motion, side, self.rgba.device)
        level = next(level for level in self._levels if level.shape[-1] >= side or level is self.rgba)
        if level.is_cuda:  # allocated on another stream, which must not reuse its memory yet
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
        """Image pyramid of the layer, the smallest level first, to avoid aliasing in smaller images."""
        levels = [self.rgba]
        while levels[0].shape[-1] >= 128:
            levels.insert(0, functional.avg_pool2d(levels[0][None], 2)[0])
        return levels

    def room_picture(self, side: int) -> torch.Tensor:
        """Blurred image of the room, (side, side, 3) float32 in [0, 1], on the layer's device."""
        large = functional.interpolate(self.room[None], (side, side), mode="bicubic", align_corners=False)[0]
        return large.clamp(0.0, 1.0).permute(1, 2, 0).contiguous()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Float32 tensors of the layer on the CPU, by name, for the avatar file."""
        motion = {name: torch.from_numpy(getattr(self.motion, name)) for name in ("weights", "middle", "reach")}
        every = {"rgba": self.rgba, "room": self.room, **motion}
        return {name: tensor.cpu().float().contiguous() for name, tensor in every.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], model: AvatarModel) -> TorsoLayer:
        """Torso layer from the tensors that `tensors` returned, on the device of ``model``.

        Raises ValueError if they are incomplete or invalid.
        """
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
                raise ValueError(f"the {name} of its torso has the shape {list(got)}")
        rgba, room = tensors["rgba"], tensors["room"]
        side = rgba.shape[-1]
        if rgba.shape[-2] != side or not 1 <= side <= MAX_SIDE:
            raise ValueError(f"its torso has {rgba.shape[-2]} x {side} pixels")
        if not all(bool(((part >= 0.0) & (part <= 1.0)).all()) for part in (rgba, room)):
            raise ValueError("its torso has colours outside [0, 1]")
        weights, middle, reach = (tensors[name].double().numpy() for name in ("weights", "middle", "reach"))
        # Larger numbers would move the torso far out of the image or turn it over.
        if (abs(weights) > 10.0).any() or (abs(middle) > 100.0).any() or not ((reach >= 0.0) & (reach < 100.0)).all():
            raise ValueError("the motion of its torso is out of range")
        return cls(rgba.to(model.device), room.to(model.device), MotionModel(weights, middle, reach))

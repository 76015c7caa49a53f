"""A person for the tests of kernels that pose heads: the open head, its states, buffers full of poison."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from insta_runtime.config import AvatarConfig, OccupancyConfig
from insta_runtime.head import HeadModel
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.occupancy import occupancy_struct
from insta_runtime.native.posing import PosedHeads, pack_state
from insta_runtime.render.model import AvatarModel
from insta_runtime.types import Camera, HeadState
from insta_runtime.warp.warp import PosedHead
from tests.support.small_person import SMALL, camera, flame_head, neutral_shape, open_head

DEFAULT = AvatarConfig(occupancy=OccupancyConfig(resolution=24))  # the default cells and candidates of the posed grid
POISON = -7  # of whole numbers; the others are not numbers


@cache
def model_of(device: torch.device, config: AvatarConfig = SMALL, flame: bool = False) -> AvatarModel:
    head = flame_head() if flame else open_head()
    return AvatarModel(head, neutral_shape(head), config, device)


def random_state(head: HeadModel, seed: int) -> HeadState:
    """A face that does many things at once, every joint turned."""
    random = np.random.default_rng(seed)

    def turn(*shape: int, spread: float) -> np.ndarray:
        return (spread * random.standard_normal(shape)).astype(np.float32)

    units = len(head.expression_names)
    return HeadState(
        (0.6 * random.random(units) ** 3).astype(np.float32),
        jaw_pose=turn(3, spread=0.05),
        neck_pose=turn(3, spread=0.1),
        eye_pose=turn(2, 3, spread=0.15),
        eyelids=random.random(2).astype(np.float32),
        rotation=np.array([np.pi, 0.0, 0.0], np.float32) + turn(3, spread=0.2),
        translation=np.array([0.0, 0.02, 0.6], np.float32) + turn(3, spread=0.02),
    )


def poison(struct: Struct) -> None:
    """Fill every array of a struct with what no kernel may leave there."""
    for tensor in struct.tensors.values():
        if isinstance(tensor, torch.Tensor):
            tensor.fill_(POISON if tensor.dtype == torch.int32 else torch.nan)


@dataclass
class Posed:
    """Posed heads after a run: what kernels made, and the twins of the same states."""

    heads: PosedHeads
    states: list[HeadState]
    model: AvatarModel

    def array(self, name: str) -> torch.Tensor:
        tensor = self.heads.poses.tensors[name]
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def twins(self) -> list[PosedHead]:
        return [self.model.pose(state) for state in self.states]


def run(model: AvatarModel, states: list[HeadState], view: Camera | None = None) -> Posed:
    """``states`` posed by kernels, in buffers that held poison."""
    kernels = Kernels(model.device, avatar_constants(model.config))
    heads = PosedHeads(kernels, model, len(states))
    poison(heads.poses)
    rows = [pack_state(model, state, view or camera(64)) for state in states]
    heads.states.copy_(torch.from_numpy(np.stack(rows)))
    heads.run(occupancy_struct(kernels, model.occupancy, model.occupancy.state()))
    return Posed(heads, states, model)


def band_points(posed: Posed, frame: int, count: int) -> torch.Tensor:
    """Points (count, 3) spread over the frame's marked cells."""
    warp, device = posed.model.warp, posed.model.device
    cells = posed.array("cell")[frame, : int(posed.heads.count[frame])].long()
    cells = cells[torch.randint(len(cells), (count,), device=device)]
    shift = torch.rand((count, 3), device=device) - 0.5
    return warp.box.cell_centres(cells, warp.resolution) + 0.999 * shift * warp.box.side / warp.resolution

"""A tiny person for the tests of the avatar runtime: a head, its poses, pictures of it, a small model.

The pictures are the head mesh itself, painted by a smooth function of the rest position and drawn by the rasteriser:
states, mattes and colours are exact.
"""

from __future__ import annotations

import copy
import math
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch

from insta_runtime.config import AvatarConfig, FieldConfig, LearnConfig, OccupancyConfig, SamplingConfig, WarpConfig
from insta_runtime.geometry import camera_vertices
from insta_runtime.head import HeadModel, HeadRig, load_head
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.raster import rasterise
from insta_runtime.types import Camera, HeadState, Observation
from tests.support.flame_layout import flame_layout, write_npz

CPU = torch.device("cpu")
SMALL = AvatarConfig(
    warp=WarpConfig(cell=0.025, candidates=24),
    radiance=FieldConfig(
        levels=4, features=2, log2_entries=12, base=8, finest=64, hidden=16, density_layers=1, colour_layers=2
    ),
    sampling=SamplingConfig(step=0.006, max_samples=24),
    occupancy=OccupancyConfig(resolution=32),
    learn=LearnConfig(rays=512, learning_rate=0.03, frames=2, size=48, replay_mb=64, decay_steps=100),
)


def camera(size: int) -> Camera:
    """A square picture of ``size`` pixels, as of a laptop's camera."""
    return Camera(1.2 * size, 1.2 * size, size / 2, size / 2, size, size)


@cache
def open_head() -> HeadModel:
    return load_head()


@cache
def flame_head() -> HeadModel:
    """A generated head in FLAME's layout."""
    with tempfile.TemporaryDirectory() as folder:
        return load_head(write_npz(Path(folder) / "head.npz", flame_layout()))


def neutral_shape(head: HeadModel) -> np.ndarray:
    return np.zeros(len(head.shape_dirs), np.float32)


def pose(head: HeadModel, jaw: float = 0.0, smile: float = 0.0, blink: float = 0.0, yaw: float = 0.0) -> HeadState:
    """A face 60 cm before the camera, turned by ``yaw`` radians; ``jaw``, ``smile`` and ``blink`` in [0, 1]."""
    names = head.expression_names
    expression, jaw_pose, eyelids = np.zeros(len(names), np.float32), np.zeros(3, np.float32), np.zeros(2, np.float32)
    if head.basis == "arkit52":
        expression[names.index("jawOpen")] = jaw
        expression[[names.index("mouthSmileLeft"), names.index("mouthSmileRight")]] = smile
        expression[[names.index("eyeBlinkLeft"), names.index("eyeBlinkRight")]] = blink
    else:
        jaw_pose[0], expression[0], eyelids[:] = 0.4 * jaw, smile, blink
    # Half a turn about x (the face looks into the camera) after the yaw is half a turn about this axis.
    rotation = np.array([math.pi * math.cos(yaw / 2), 0.0, math.pi * math.sin(yaw / 2)], np.float32)
    translation = np.array([0.0, 0.02, 0.6], np.float32)
    return HeadState(
        expression, jaw_pose=jaw_pose, eyelids=eyelids, rotation=rotation, translation=translation, t_capture_ns=7
    )


def performance(head: HeadModel, count: int) -> list[HeadState]:
    """``count`` different states that talk, smile, blink and turn."""
    return [
        pose(
            head,
            jaw=max(0.0, 0.5 * math.sin(0.7 * i)),
            smile=abs(0.6 * math.sin(0.31 * i)),
            blink=float(i % 9 == 8),
            yaw=0.4 * math.sin(0.53 * i),
        )
        for i in range(count)
    ]


def paint(head: HeadModel) -> torch.Tensor:
    """A smooth colour (V, 3) for every vertex."""
    x, y, z = HeadRig(head).canonical(neutral_shape(head), 0.0).vertices.unbind(-1)
    red, green, blue = (
        0.6 + 0.2 * torch.sin(60 * x),
        0.45 + 0.15 * torch.sin(50 * y + 1),
        0.4 + 0.15 * torch.sin(40 * z),
    )
    return torch.stack([red, green, blue], dim=-1)


def photograph(head: HeadModel, states: list[HeadState], size: int, colours: torch.Tensor) -> list[Observation]:
    """Pictures and mattes of the head in ``states``, its vertices coloured by ``colours`` (V, 3)."""
    rig, view = HeadRig(head), camera(size)
    observations = []
    for i, state in enumerate(states):
        vertices = camera_vertices(rig.pose(neutral_shape(head), state).vertices, state)
        raster = rasterise(vertices, rig.faces, view)
        rgb = (raster.interpolate(colours) * 255.0 + 0.5).to(torch.uint8).numpy()
        alpha = (raster.mask * 255).to(torch.uint8).numpy()
        observations.append(Observation(i, rgb, alpha, view, state))
    return observations


def small_model(head: HeadModel | None = None, config: AvatarConfig = SMALL, seed: int = 0) -> AvatarModel:
    """An untrained model of the neutral person, free to be changed; what no model ever changes is shared."""
    fresh = _fresh_model(head is not None and head.basis == "flame", config, seed)
    return copy.deepcopy(fresh, {id(part): part for part in (fresh.head, fresh.rig, fresh.warp)})


@cache
def _fresh_model(flame: bool, config: AvatarConfig, seed: int) -> AvatarModel:
    head = flame_head() if flame else open_head()
    return AvatarModel(head, neutral_shape(head), config, CPU, seed)

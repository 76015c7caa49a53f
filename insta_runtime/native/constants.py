"""Constants that are compiled into the kernels of an avatar."""

from __future__ import annotations

from insta_runtime.config import AvatarConfig
from insta_runtime.learn.adam import BETA1, BETA2, EPSILON
from insta_runtime.native.field import field_constants
from insta_runtime.native.kernels import Constant
from insta_runtime.render.occupancy import HULL_ALPHA, HULL_NEAR, HULL_SHARE, HULL_VOTES, IN_SIGHT, VISIBILITY_DECAY
from insta_runtime.render.rays import EDGE
from insta_runtime.warp.frames import SCALES
from insta_runtime.warp.warp import BLENDS, TURN_RADIUS, detachment_height

NEVER = 1 << 30
"""Number of training images after which silhouettes rule out cells if `OccupancyConfig.silhouettes` is off."""


def avatar_constants(config: AvatarConfig) -> dict[str, Constant]:
    """Constants of all modules of ``cuda/`` by name, for `Kernels`: those of the field and of the torch reference."""
    return field_constants(config.radiance, config.conditioning.code) | {
        "WARP_BLEND": BLENDS.index(config.warp.blend),
        "WARP_SCALE": SCALES.index(config.warp.scale),
        "WARP_DETACHMENT_HEIGHT": detachment_height(config.warp),
        "LIPS_ALONE": int(config.conditioning.code == "lips"),
        "EDGE": EDGE,
        "BEHIND_SURFACE": config.sampling.behind,
        "HULL_VOTES": HULL_VOTES if config.occupancy.silhouettes else NEVER,
        "HULL_SHARE": HULL_SHARE,
        "HULL_ALPHA": HULL_ALPHA,
        "HULL_NEAR": HULL_NEAR,
        "IN_SIGHT": IN_SIGHT,
        "VISIBILITY_DECAY": VISIBILITY_DECAY,
        "DEPTH_SLACK": config.learn.depth_slack,
        "NETWORK_DECAY": config.learn.network_decay,
        "BETA1": BETA1,
        "BETA2": BETA2,
        "EPSILON": EPSILON,
        "TURN_RADIUS": TURN_RADIUS,
    }

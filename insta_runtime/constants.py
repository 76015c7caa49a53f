"""What the device code of an avatar is compiled with."""

from __future__ import annotations

from insta_runtime.config import FieldConfig
from insta_runtime.field.packed import field_constants
from insta_runtime.kernels import Constant
from insta_runtime.learn.losses import DEPTH_SLACK
from insta_runtime.learn.trainer import BETA1, BETA2, EPSILON
from insta_runtime.render.occupancy import HULL_ALPHA, HULL_NEAR, HULL_SHARE, HULL_VOTES
from insta_runtime.learn.registration import RESIDUAL_FADES
from insta_runtime.render.rays import BEHIND_SURFACE
from insta_runtime.render.registration import FEATURES_OF_POSE, LEVER


def avatar_constants(config: FieldConfig) -> dict[str, Constant]:
    """The constants of every module of ``cuda/``, for `Kernels`: those of the field, and of the torch twins."""
    return field_constants(config) | {
        "BEHIND_SURFACE": BEHIND_SURFACE,
        "HULL_VOTES": HULL_VOTES,
        "HULL_SHARE": HULL_SHARE,
        "HULL_ALPHA": HULL_ALPHA,
        "HULL_NEAR": HULL_NEAR,
        "DEPTH_SLACK": DEPTH_SLACK,
        "BETA1": BETA1,
        "BETA2": BETA2,
        "EPSILON": EPSILON,
        "FEATURES_OF_POSE": FEATURES_OF_POSE,
        "LEVER": LEVER,
        "RESIDUAL_FADES": RESIDUAL_FADES,
    }

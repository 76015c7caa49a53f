"""Every knob of the avatar, with unit, bounds and meaning.

Plain frozen dataclasses, so that the runtime needs no configuration library; `telepresence.config` reads
them from TOML, refuses unknown keys and checks the bounds declared here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from insta_runtime.errors import UserError

T = TypeVar("T")


def setting(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that documents itself: default, meaning, unit, inclusive bounds, allowed words."""
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "ge": ge, "le": le, "choices": choices})


@dataclass(frozen=True)
class WarpConfig:
    """Posed <-> canonical: how a sample finds its triangle and rides with it."""

    cell: float = setting(0.008, "edge of a cell of the candidate grid", unit="m", ge=0.002, le=0.05)
    candidates: int = setting(32, "triangles that a cell offers to its samples", ge=4, le=64)
    band: float = setting(
        0.06, "distance from the posed surface beyond which nothing is sampled", unit="m", ge=0.005, le=0.2
    )
    canonical_jaw: float = setting(
        0.35, "how far the canonical mouth stands open (jawOpen, or x 0.6 rad)", ge=0.0, le=1.0
    )
    loosens: float = setting(
        0.016,
        "distance above the surface at which hair and glasses follow the head alone, not its expressions; 0: never",
        unit="m",
        ge=0.0,
        le=0.1,
    )
    blend: str = setting(
        "surface",
        "what a sample rides with: maps blended over the surface; those of the nearest triangle and, on the face, of "
        "its neighbours (INSTA); or the nearest triangle's alone",
        choices=("surface", "neighbours", "triangle"),
    )
    scale: str = setting(
        "length",
        "how offsets shrink and grow with their triangle: as its lengths; as its area, around the eyes alone (INSTA); "
        "or not at all",
        choices=("length", "area", "none"),
    )


@dataclass(frozen=True)
class FieldConfig:
    """The radiance field in canonical space: hash grid and MLPs."""

    levels: int = setting(12, "levels of the hash grid", ge=1, le=24)
    features: int = setting(2, "features a level, an even number", ge=2, le=8)
    log2_entries: int = setting(17, "log2 of the table size of a level", ge=8, le=24)
    base: int = setting(16, "resolution of the coarsest level across the canonical box", ge=2, le=128)
    finest: int = setting(512, "resolution of the finest level across the canonical box", ge=4, le=8192)
    hidden: int = setting(64, "width of the hidden layers", ge=8, le=256)
    density_layers: int = setting(2, "hidden layers of the density network", ge=1, le=3)
    colour_layers: int = setting(3, "hidden layers of the colour network", ge=2, le=3)
    direction_bands: int = setting(
        2, "bands of spherical harmonics of the view direction: 2 is linear, 4 has sixteen numbers", ge=1, le=4
    )

    def __post_init__(self) -> None:
        if self.features % 2:
            raise UserError(f"features = {self.features} must be an even number")
        if self.finest < self.base:
            raise UserError(f"base = {self.base} must not be finer than finest = {self.finest}")


@dataclass(frozen=True)
class ConditioningConfig:
    """What the field is told of an expression."""

    code: str = setting(
        "faded",
        "codes of mouth and eyes that fade with distance; or sixteen numbers for what is nearest to the lips, and ones "
        "elsewhere (INSTA)",
        choices=("faded", "lips"),
    )
    standardise: bool = setting(True, "tell it codes in units of the person's own range, around their mean")
    pull_in: bool = setting(True, "tell it of a code that was never seen the nearest one that was")
    pull_views: bool = setting(True, "ask it for colours of a view that was never had as from the nearest one that was")


@dataclass(frozen=True)
class SamplingConfig:
    """How a ray is sampled."""

    step: float = setting(0.004, "distance between samples on a ray", unit="m", ge=0.0005, le=0.02)
    max_samples: int = setting(32, "samples a ray at most; the nearest ones are kept", ge=4, le=1024)
    behind: float = setting(
        0.025, "distance behind the first surface of the head mesh where a ray ends", unit="m", ge=0.0, le=2.0
    )
    room: int = setting(
        40, "steps a ray for which learning has memory, on average; beyond it the farthest go", ge=4, le=1024
    )


@dataclass(frozen=True)
class OccupancyConfig:
    """The canonical occupancy grid."""

    resolution: int = setting(48, "cells along the longest side of the canonical box", ge=8, le=256)
    interval: int = setting(8, "training steps between updates", ge=1, le=1000)
    decay: float = setting(0.95, "how fast an old density fades at an update", ge=0.0, le=1.0)
    threshold: float = setting(0.03, "opacity of one step above which a cell is occupied", ge=0.0, le=1.0)
    silhouettes: bool = setting(True, "empty cells that lie outside the matte of what was seen")
    inpaint: bool = setting(True, "show, where nobody saw anything, the head mesh in the colours around it")


@dataclass(frozen=True)
class RegistrationConfig:
    """How tracked head poses are corrected."""

    rate: float = setting(
        2e-4,
        "what a step may move the head of a picture by at first; 0 takes poses as they were tracked",
        unit="m",
        ge=0.0,
        le=0.01,
    )
    fades: float = setting(
        0.04, "part of the way to what its state predicts that it goes whenever it is drawn", ge=0.0, le=1.0
    )
    ridge: float = setting(
        0.03,
        "least ridge of the regressions that predict, a part of the pictures; cross-validation may take 300 times it",
        ge=1e-6,
        le=100.0,
    )


@dataclass(frozen=True)
class LearnConfig:
    """Losses, optimiser, replay."""

    rays: int = setting(16384, "rays of a training step", ge=64, le=1 << 20)
    frames: int = setting(4, "observations that share a training step", ge=1, le=64)
    size: int = setting(512, "longest side of the pictures learned from", unit="px", ge=32, le=2048)
    learning_rate: float = setting(1e-2, "Adam step size of the hash grid", ge=1e-6, le=1.0)
    network_rate: float = setting(0.3, "learning rate of the MLPs as a part of the grid's", ge=0.0, le=10.0)
    network_decay: float = setting(0.0, "L2 penalty on the weights of the MLPs", ge=0.0, le=1.0)
    final_rate: float = setting(0.1, "learning rate at the end of the schedule, as a part of the first", ge=0.0, le=1.0)
    decay_steps: int = setting(4000, "steps of a live call over which the rate falls to its last value", ge=1)
    ema: float = setting(0.99, "decay of the averaged weights that are shown", ge=0.0, le=0.9999)
    huber: float = setting(0.1, "colour error where the loss turns from quadratic to linear", ge=0.001, le=1.0)
    mask_weight: float = setting(0.2, "weight of the opacity loss", ge=0.0, le=100.0)
    depth_weight: float = setting(0.5, "weight of the depth prior of the head mesh", ge=0.0, le=100.0)
    depth_slack: float = setting(
        0.004, "how wrong the head mesh may be before the depth prior pulls", unit="m", ge=0.0, le=0.1
    )
    depth_on: str = setting(
        "face",
        "where the depth prior acts: bare face; or all skin, with ears, neck and eyes",
        choices=("face", "skin"),
    )
    mouth_weight: float = setting(4.0, "weight of a pixel of the mouth", ge=1.0, le=100.0)
    mouth_on: str = setting(
        "mouth", "which pixels that is: lips and what surrounds them; or lips alone", choices=("mouth", "lips")
    )
    mouth_from_step: int = setting(0, "steps after which the mouth has its weight", ge=0)
    binary_matte: bool = setting(False, "learn from a matte that is solid or nothing")
    focus: float = setting(0.7, "part of the rays that go through the head", ge=0.0, le=1.0)
    margin: float = setting(0.2, "part that goes through what is around it; the rest goes anywhere", ge=0.0, le=1.0)
    code_jitter: float = setting(0.05, "noise on expression codes, against memorising frames", ge=0.0, le=1.0)
    replay_mb: int = setting(1024, "memory for pictures to learn from", unit="MiB", ge=16, le=1 << 16)
    seed: int = setting(0, "seed of every random choice", ge=0)


@dataclass(frozen=True)
class TorsoConfig:
    """The flat layer of neck and shoulders behind the head."""

    size: int = setting(512, "side of the layer", unit="px", ge=64, le=1024)


@dataclass(frozen=True)
class AvatarConfig:
    """All of the above."""

    warp: WarpConfig = field(default_factory=WarpConfig)
    radiance: FieldConfig = field(default_factory=FieldConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    occupancy: OccupancyConfig = field(default_factory=OccupancyConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    torso: TorsoConfig = field(default_factory=TorsoConfig)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain dicts, for a file."""
    return {
        f.name: to_dict(getattr(config, f.name)) if is_dataclass(f.default_factory) else getattr(config, f.name)
        for f in fields(config)
    }


def from_dict(kind: type[T], values: Any) -> T:
    """The configuration of type ``kind`` from nested plain dicts, as `to_dict` makes them.

    Raises UserError for anything but the known keys with values of the right type within their bounds.
    """
    if not isinstance(values, dict):
        raise UserError(f"{kind.__name__} must be a table")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UserError(f"{kind.__name__} has no setting {name!r}")
    checked: dict[str, Any] = {}
    value: Any
    for name, value in values.items():
        nested = known[name].default_factory
        if isinstance(nested, type):
            checked[name] = from_dict(nested, value)
            continue
        default, bounds = known[name].default, known[name].metadata
        number = isinstance(value, int | float) and not isinstance(value, bool)
        low, high = bounds["ge"], bounds["le"]
        if number and not ((low is None or value >= low) and (high is None or value <= high)):
            raise UserError(f"{kind.__name__}.{name} = {value!r} is out of bounds")
        if isinstance(default, float) and number:
            value = float(value)
        if type(value) is not type(default):
            raise UserError(f"{kind.__name__}.{name} must be a {type(default).__name__}, not {value!r}")
        if (choices := known[name].metadata["choices"]) and value not in choices:
            raise UserError(f"{kind.__name__}.{name} must be one of {', '.join(choices)}, not {value!r}")
        checked[name] = value
    return kind(**checked)

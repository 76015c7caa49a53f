"""Configuration of the avatar: frozen dataclasses whose fields carry unit, bounds and meaning, and their validator.

The runtime needs no configuration library for it; `telepresence.config` adds presets, TOML files and ``--set``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

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
    """Dataclass field with its documentation: meaning, unit, inclusive bounds ``ge`` and ``le``, allowed words."""
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "ge": ge, "le": le, "choices": choices})


@dataclass(frozen=True)
class Setting:
    """Description of one setting of a configuration.

    Attributes:
        key: dotted name, such as ``learn.rays``.
        type: type of its values: int, float, bool or str.
        default: default value.
        meaning, unit: description in words, and unit (empty for none).
        ge, le: inclusive lower and upper bound; None for no bound.
        choices: allowed words of a text; empty for any.
    """

    key: str
    type: type
    default: Any
    meaning: str
    unit: str
    ge: float | None
    le: float | None
    choices: tuple[str, ...]


def settings_of(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of the dataclass ``schema`` and of those nested in it, in the order of declaration.

    ``prefix`` is put before the keys.
    """
    hints = get_type_hints(schema)
    for item in fields(schema):
        key = f"{prefix}{item.name}"
        if is_dataclass(hints[item.name]):
            yield from settings_of(hints[item.name], f"{key}.")
        else:
            yield Setting(key, hints[item.name], item.default, **item.metadata)


def check_value(entry: Setting, value: Any, where: str = "") -> Any:
    """Validate ``value`` as a value of the setting ``entry``, and return it.

    A whole number is converted for a setting of type float; nothing else is converted.  Raises UserError, with one line
    that names the key and the allowed values, for a value of another type, outside the bounds, or not among the
    choices; ``where`` is put before the key.
    """
    wrong = UserError(f"{where}{entry.key} must be {_admitted(entry)}, got {str(value)[:80]!r}")
    if entry.type is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise wrong from None
    if type(value) is not entry.type or (entry.choices and value not in entry.choices):
        raise wrong
    if entry.type in (int, float):
        number: Any = value
        low = -math.inf if entry.ge is None else entry.ge
        high = math.inf if entry.le is None else entry.le
        if not low <= number <= high or number in (-math.inf, math.inf):
            raise wrong
    return value


def _admitted(entry: Setting) -> str:
    """The values that a setting admits, in words."""
    if entry.choices:
        return f"one of {', '.join(entry.choices)}"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    text = words.get(entry.type, f"of type {entry.type}")
    unit = f" {entry.unit}" if entry.unit else ""
    if entry.ge is not None and entry.le is not None:
        return f"{text} between {entry.ge:.10g} and {entry.le:.10g}{unit}"
    if entry.ge is not None:
        return f"{text} of at least {entry.ge:.10g}{unit}"
    if entry.le is not None:
        return f"{text} of at most {entry.le:.10g}{unit}"
    return text


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain dictionaries, ready for JSON."""
    return {
        f.name: to_dict(getattr(config, f.name)) if is_dataclass(f.default_factory) else getattr(config, f.name)
        for f in fields(config)
    }


def from_dict(kind: type[T], values: Any, prefix: str = "") -> T:
    """Instance of the configuration dataclass ``kind`` from nested plain dictionaries, as `to_dict` returns them.

    Absent settings have their defaults.  Raises UserError, with one line that names the dotted key (after ``prefix``),
    for unknown keys and for values that `check_value` rejects.
    """
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the configuration'} must be a table of settings")
    hints = get_type_hints(kind)
    own = {entry.key: entry for entry in settings_of(kind)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"unknown setting {str(prefix + str(name))[:80]!r}: see docs/configuration.md")
        if is_dataclass(hints[name]):
            checked[name] = from_dict(hints[name], value, f"{prefix}{name}.")
        else:
            checked[name] = check_value(replace(own[name], key=f"{prefix}{name}"), value)
    return kind(**checked)


@dataclass(frozen=True)
class WarpConfig:
    """Settings of the warp between a posed head and canonical space: nearest triangles and how samples follow them."""

    cell: float = setting(
        0.008,
        "edge length of a voxel of the grid that lists candidates for the nearest triangle",
        unit="m",
        ge=0.002,
        le=0.05,
    )
    candidates: int = setting(32, "number of candidate triangles that are listed for each voxel", ge=4, le=64)
    band: float = setting(
        0.06,
        "distance from the posed mesh within which samples are taken; space farther away is empty",
        unit="m",
        ge=0.005,
        le=0.2,
    )
    canonical_jaw: float = setting(
        0.35,
        "mouth opening of the canonical mesh (jawOpen for the open head; times 0.6 rad of the jaw joint for FLAME)",
        ge=0.0,
        le=1.0,
    )
    loosens: float = setting(
        0.016,
        "height above the surface from which samples (hair, glasses) follow the rigid head motion only, not the "
        "expressions of the mesh; 0 turns this off",
        unit="m",
        ge=0.0,
        le=0.1,
    )
    blend: str = setting(
        "surface",
        "deformation that a sample follows: vertex maps interpolated over the surface (surface); that of the nearest "
        "triangle averaged with its neighbours on the face, as in INSTA (neighbours); that of the nearest triangle "
        "(triangle)",
        choices=("surface", "neighbours", "triangle"),
    )
    scale: str = setting(
        "length",
        "scaling of a sample's offset from its triangle: by the ratio of lengths (length); by the ratio of areas, only "
        "around the eyes, as in INSTA (area); no scaling (none)",
        choices=("length", "area", "none"),
    )


@dataclass(frozen=True)
class FieldConfig:
    """Settings of the radiance field: multiresolution hash grid, density network and colour network."""

    levels: int = setting(12, "number of levels of the hash grid", ge=1, le=24)
    features: int = setting(2, "number of features per level of the hash grid; must be even", ge=2, le=8)
    log2_entries: int = setting(17, "base-2 logarithm of the number of table entries per level", ge=8, le=24)
    base: int = setting(16, "resolution of the coarsest level across the canonical box", ge=2, le=128)
    finest: int = setting(512, "resolution of the finest level across the canonical box", ge=4, le=8192)
    hidden: int = setting(64, "number of neurons in each hidden layer", ge=8, le=256)
    density_layers: int = setting(2, "number of hidden layers of the density network", ge=1, le=3)
    colour_layers: int = setting(3, "number of hidden layers of the colour network", ge=2, le=3)
    direction_bands: int = setting(
        2, "number of spherical-harmonics bands that encode the view direction: n bands give n^2 inputs", ge=1, le=4
    )

    def __post_init__(self) -> None:
        if self.features % 2:
            raise UserError(f"radiance.features must be an even number, got {self.features}")
        if self.finest < self.base:
            raise UserError(f"radiance.finest must be at least radiance.base = {self.base}, got {self.finest}")


@dataclass(frozen=True)
class ConditioningConfig:
    """Settings of the expression codes: the input of the radiance field that depends on the expression."""

    code: str = setting(
        "faded",
        "kind of expression code: mouth and eye codes that fade with distance from mouth and eyes (faded); sixteen "
        "numbers where the nearest triangle is one of the lips and ones elsewhere, as in INSTA (lips)",
        choices=("faded", "lips"),
    )
    head_part: bool = setting(
        True, "condition the whole head, not only mouth and eyes, on expression and view direction (faded codes)"
    )
    standardise: bool = setting(True, "standardise expression codes by the subject's own mean and spread")
    pull_in: bool = setting(
        True, "project expression codes outside the range seen in training to the nearest code inside it"
    )
    pull_views: bool = setting(True, "clamp view directions to the nearest one seen in training")


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampling of camera rays: distance and number of samples, end of the rays."""

    step: float = setting(0.004, "distance between samples on a ray", unit="m", ge=0.0005, le=0.02)
    max_samples: int = setting(
        32, "maximum number of samples per ray; the samples nearest to the camera are kept", ge=4, le=1024
    )
    behind: float = setting(
        0.025, "distance behind the first surface of the head mesh at which a ray ends", unit="m", ge=0.0, le=2.0
    )
    room: int = setting(
        40,
        "number of samples per ray, on average, for which training reserves memory; beyond it the farthest samples "
        "are dropped",
        ge=4,
        le=1024,
    )


@dataclass(frozen=True)
class OccupancyConfig:
    """Settings of the occupancy grid in canonical space, which marks the cells in which rays are sampled."""

    resolution: int = setting(48, "number of cells along each side of the canonical box", ge=8, le=256)
    interval: int = setting(8, "number of training steps between updates of the occupancy grid", ge=1, le=1000)
    decay: float = setting(0.95, "factor by which the stored opacity of a cell decays at each update", ge=0.0, le=1.0)
    threshold: float = setting(0.03, "opacity of one sampling step above which a cell is occupied", ge=0.0, le=1.0)
    silhouettes: bool = setting(True, "empty the cells that lie outside the mattes of the training frames")
    inpaint: bool = setting(
        True, "render parts of the head that no training frame showed as the mesh, in the colours of their surroundings"
    )


@dataclass(frozen=True)
class PoseRefinementConfig:
    """Settings of the learned correction of the tracked head poses."""

    rate: float = setting(
        2e-4,
        "initial step size of the head pose corrections; 0 uses head poses as tracked",
        unit="m",
        ge=0.0,
        le=0.01,
    )
    fades: float = setting(
        0.04,
        "decay of a frame's pose correction towards the value that the regression predicts, each time it is drawn",
        ge=0.0,
        le=1.0,
    )
    ridge: float = setting(
        0.03,
        "smallest ridge penalty of the regression, relative to the number of frames; cross-validation chooses up to "
        "300 times as much",
        ge=1e-6,
        le=100.0,
    )


@dataclass(frozen=True)
class LearnConfig:
    """Settings of training: batch size, losses, optimiser, learning-rate schedule and replay buffer."""

    rays: int = setting(16384, "number of rays per training step", ge=64, le=1 << 20)
    frames: int = setting(4, "number of frames that the rays of one training step come from", ge=1, le=64)
    size: int = setting(512, "longest side of the training images", unit="px", ge=32, le=2048)
    learning_rate: float = setting(1e-2, "initial Adam learning rate of the hash grid", ge=1e-6, le=1.0)
    network_rate: float = setting(0.3, "learning rate of the networks relative to the hash grid's", ge=0.0, le=10.0)
    network_decay: float = setting(0.0, "L2 penalty (weight decay) on the weights of the networks", ge=0.0, le=1.0)
    final_rate: float = setting(
        0.1, "learning rate at the end of the schedule, relative to the initial one", ge=0.0, le=1.0
    )
    decay_steps: int = setting(
        4000, "number of training steps of a live call over which the learning rate falls to its final value", ge=1
    )
    ema: float = setting(
        0.99,
        "decay of the exponential moving average of the weights; the average is what is rendered",
        ge=0.0,
        le=0.9999,
    )
    huber: float = setting(
        0.1, "colour error at which the Huber loss changes from quadratic to linear", ge=0.001, le=1.0
    )
    mask_weight: float = setting(0.2, "weight of the opacity loss", ge=0.0, le=100.0)
    depth_weight: float = setting(
        0.5, "weight of the depth loss, which keeps the field near the head mesh", ge=0.0, le=100.0
    )
    depth_slack: float = setting(
        0.004, "distance from the head mesh up to which the depth loss is zero", unit="m", ge=0.0, le=0.1
    )
    depth_on: str = setting(
        "face",
        "region of the depth loss: the bare face (face); all skin, with ears, neck and eyes (skin)",
        choices=("face", "skin"),
    )
    mouth_weight: float = setting(
        4.0, "weight of the colour loss of a mouth pixel; other pixels have 1", ge=1.0, le=100.0
    )
    mouth_on: str = setting(
        "mouth",
        "region of the mouth pixels: lips and their surroundings (mouth); lips alone (lips)",
        choices=("mouth", "lips"),
    )
    mouth_from_step: int = setting(0, "training step from which mouth pixels have their weight", ge=0)
    binary_matte: bool = setting(False, "threshold the mattes of the training frames to fully opaque or transparent")
    focus: float = setting(0.7, "share of the rays that is drawn from pixels of the head", ge=0.0, le=1.0)
    margin: float = setting(
        0.2, "share of the rays that is drawn from pixels around the head; the rest is uniform", ge=0.0, le=1.0
    )
    code_jitter: float = setting(
        0.1, "standard deviation of the noise that is added to expression codes in training", ge=0.0, le=1.0
    )
    replay_mb: int = setting(1024, "memory budget of the replay buffer", unit="MiB", ge=16, le=1 << 16)
    seed: int = setting(0, "seed of all random numbers", ge=0)


@dataclass(frozen=True)
class TorsoConfig:
    """Settings of the torso layer: the flat image of neck and shoulders behind the head."""

    size: int = setting(512, "side of the torso layer", unit="px", ge=64, le=1024)


@dataclass(frozen=True)
class AvatarConfig:
    """Configuration of one avatar: warp, field, sampling, occupancy, training and torso."""

    warp: WarpConfig = field(default_factory=WarpConfig)
    radiance: FieldConfig = field(default_factory=FieldConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    occupancy: OccupancyConfig = field(default_factory=OccupancyConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    pose_refinement: PoseRefinementConfig = field(default_factory=PoseRefinementConfig)
    torso: TorsoConfig = field(default_factory=TorsoConfig)

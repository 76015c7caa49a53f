"""Configuration of the whole program: presets, TOML files and ``--set key=value``.

The dataclasses are the schema.  A preset ships with the package (``configs/*.toml``); a user's file may build on one
with ``preset = "cpu"``; ``--set a.b=value`` comes last.  Unknown keys, wrong types and values out of bounds raise
UserError with one line that names the key.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from insta_runtime.config import AvatarConfig, Setting, check_value, from_dict, setting, settings_of
from insta_runtime.errors import UserError
from telepresence.display.backgrounds import Background
from telepresence.drivers.driver_settings import DriverSettings
from telepresence.drivers.zeromq_address import check_address
from telepresence.streaming.settings import StreamSettings

Tree = dict[str, Any]
"""Settings as nested tables, as in a TOML file."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of a call as a whole: device, tracked crop, driver of the face, background, and computing time."""

    device: str = setting(
        "auto", "device that learns and renders; auto: CUDA if there is such a GPU", choices=("auto", "cpu", "cuda")
    )
    backend: str = setting(
        "auto",
        "implementation that computes; auto: native kernels for the device (cuda, host), or torch where they are not"
        " available",
        choices=("auto", "cuda", "host", "torch", "tcnn"),
    )
    size: int = setting(512, "side of the square crop that is tracked", unit="px", ge=64, le=2048)
    crop: str = setting(
        "auto",
        "crop of the camera frame; head: a square around the head; center: the centre; auto: the centre if the face"
        " takes at least a quarter of it, else head",
        choices=("auto", "head", "center"),
    )
    face_models: str = setting(
        "litert",
        "library that runs the models of landmarks and matte; litert: nothing leaves this machine; mediapipe: the same"
        " results, but the library reports its use to its vendor whenever a model is closed, and must be installed",
        choices=("litert", "mediapipe"),
    )
    drive: str = setting(
        "auto",
        "driver of the face; auto: the first driver whose newest message is less than 0.5 s old, else the tracker",
        choices=("auto", "tracker", "zmq", "subscription", "livelink", "vmc", "openseeface", "take"),
    )
    zmq: str = setting("tcp://127.0.0.1:5577", "ZeroMQ address that receives head states")
    show_camera: bool = setting(False, "show viewers the camera frame until the avatar is good enough")
    background: str = setting(
        "torso",
        "background of the head: torso (the learned torso, over calm), calm, room (blurred), a colour #rrggbb or an"
        " image file; torso+ before any of these puts the learned torso over it",
    )
    render_fps: float = setting(30.0, "target frame rate of the rendered avatar", unit="1/s", ge=1.0, le=240.0)
    train_share: float = setting(
        0.5, "maximum fraction of a CPU's cores, or of a GPU's time, that training takes", ge=0.0, le=1.0
    )
    memory_mb: int = setting(
        1200,
        "memory budget of the whole daemon without a GPU: replay keeps fewer frames where it would be exceeded;"
        " 0: none",
        unit="MB",
        ge=0,
        le=1_000_000,
    )
    freeze: bool = setting(False, "show the avatar without training it")
    autosave_s: float = setting(
        10.0,
        "time between two autosaves of the avatar, which is the most that is lost if the program is killed",
        unit="s",
        ge=0.1,
        le=3600.0,
    )
    keep_frames: bool = setting(
        False,
        "keep the frames that are learned from in an archive beside the avatar, to learn from them in later calls",
    )
    consent: bool = setting(False, "note in the avatar's file that its subject has agreed to the avatar being kept")


@dataclass(frozen=True)
class Config:
    """The whole configuration of the program."""

    run: RunConfig = field(default_factory=RunConfig)
    drivers: DriverSettings = field(default_factory=DriverSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    avatar: AvatarConfig = field(default_factory=AvatarConfig)


def settings() -> Iterator[Setting]:
    """All settings of `Config`, in the order of their declaration."""
    return settings_of(Config)


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in _preset_folder().glob("*.toml"))


def resolve_device(name: str) -> str:
    """Resolve ``auto``, ``cpu`` or ``cuda`` to ``cpu`` or ``cuda``; UserError for CUDA where there is none."""
    if name == "cpu":  # do not import torch
        return name
    from insta_runtime.avatar import choose_device

    return choose_device(name).type


def load_config(name_or_path: str | None, overrides: Sequence[str] = (), device: str = "auto") -> Config:
    """Load the configuration from a preset or a TOML file and ``key=value`` overrides.

    Without ``name_or_path`` the preset follows the device: ``default`` with CUDA, else ``cpu``.  ``run.device`` of the
    result is ``cpu`` or ``cuda``.  UserError names the first key that is unknown or whose value is not admitted.
    """
    changes = [_parse_override(text) for text in overrides]
    wanted = dict(changes).get("run.device", device)
    tree: Tree
    if name_or_path is None:
        wanted = resolve_device(_check("run.device", wanted))
        tree = _read_preset("default" if wanted == "cuda" else "cpu")
    else:
        tree = _read(name_or_path)
        if wanted == "auto":
            wanted = str(tree.get("run", {}).get("device", "auto"))
        wanted = resolve_device(_check("run.device", wanted))
    for key, value in [*changes, ("run.device", wanted)]:
        _merge(tree, _nested(key, value))
    config = from_dict(Config, tree)
    config.stream.check()
    config.drivers.check()
    if config.run.zmq:
        check_address(config.run.zmq, allow_remote=bool(config.drivers.keys))
    Background.parse(config.run.background)
    return config


@cache
def _schema() -> dict[str, Setting]:
    return {entry.key: entry for entry in settings()}


def _preset_folder() -> Path:
    """Folder of the presets: inside the installed package, or at the root of a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "configs"
    return packaged if packaged.is_dir() else here.parent / "configs"


def _read_preset(name: str) -> Tree:
    if name not in preset_names():
        known = ", ".join(preset_names())
        raise UserError(f"there is no preset '{name}': choose from {known}, or give the path of a TOML file")
    return _read_file(_preset_folder() / f"{name}.toml")


def _read(name_or_path: str) -> Tree:
    if name_or_path in preset_names():
        return _read_preset(name_or_path)
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        return _read_preset(name_or_path)
    return _read_file(path)


def _read_file(path: Path) -> Tree:
    """Settings of a TOML file, checked, merged into those of the preset that it names, if any."""
    try:
        tree: Tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read the configuration {path}: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None
    preset = tree.pop("preset", None)
    for key, value in _leaves(tree):
        _check(key, value, where=f"{path}: ")
    if preset is None:
        return tree
    if not isinstance(preset, str):
        raise UserError(f"{path}: preset must be the name of a preset: {', '.join(preset_names())}")
    base = _read_preset(preset)
    _merge(base, tree)
    return base


def _parse_override(text: str) -> tuple[str, Any]:
    """Key and checked value of ``a.b=value``; the value is read as TOML unless the setting is a text."""
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise UserError(f"--set takes key=value, got {text!r}")
    _check_known(key)
    value: Any = raw
    if _schema()[key].type is not str:
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw
    return key, _check(key, value)


def _check_known(key: str, where: str = "") -> None:
    """Raise UserError, with the most similar keys, if there is no setting ``key``."""
    if key in _schema():
        return
    if any(name.startswith(f"{key}.") for name in _schema()):
        raise UserError(f"{where}{key} is a group of settings, not a setting: see docs/configuration.md")
    last = key.rpartition(".")[2]
    tails = [name for name in _schema() if last and name.rpartition(".")[2] == last]
    near = list(dict.fromkeys([*tails, *difflib.get_close_matches(key, _schema(), n=3, cutoff=0.5)]))[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else f"groups are {', '.join(_groups())}"
    raise UserError(f"{where}unknown setting {key!r}: {hint}")


def _groups() -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in _schema()))


def _check(key: str, value: Any, where: str = "") -> Any:
    """Return ``value``, converted to the type of the setting ``key``; UserError if it is not admitted."""
    _check_known(key, where)
    return check_value(_schema()[key], value, where)


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every setting in nested tables."""
    for name, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in _schema():
            if not value:
                continue
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _nested(key: str, value: Any) -> Tree:
    """Nested tables that hold ``value`` at a dotted key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def _merge(base: Tree, change: Tree) -> None:
    """Merge the settings of ``change`` into ``base``, in place."""
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            _merge(base[name], value)
        else:
            base[name] = value

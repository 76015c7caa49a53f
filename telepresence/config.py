"""The configuration of the whole program: presets, TOML files, ``--set key=value``.

The dataclasses are the schema.  A preset ships with the package (``configs/*.toml``); a file of the user
may build on one with ``preset = "cpu"``; ``--set a.b=value`` comes last.  Unknown keys, wrong types and
values out of bounds are refused with one line that names the key.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from insta_runtime.config import AvatarConfig, setting
from insta_runtime.errors import UserError
from telepresence.display.backgrounds import Background
from telepresence.drivers.settings import DriverSettings
from telepresence.streaming.settings import StreamSettings

Tree = dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """What the commands do with the pictures: device, crop, who drives the face, how time is shared."""

    device: str = setting("auto", "where the avatar is learned and rendered", choices=("auto", "cpu", "cuda"))
    backend: str = setting(
        "auto",
        "what computes it; auto: native kernels for the device (cuda, host), or torch where they cannot be had",
        choices=("auto", "cuda", "host", "torch", "tcnn"),
    )
    size: int = setting(512, "side of the square picture that is tracked", unit="px", ge=64, le=2048)
    crop: str = setting(
        "auto",
        "window of the camera picture: auto takes the centre if the face is at least a quarter of it, else the head",
        choices=("auto", "head", "center"),
    )
    drive: str = setting(
        "auto",
        "who moves the face; auto: the first driver whose newest message is under 0.5 s old, else the tracker",
        choices=("auto", "tracker", "zmq", "subscription", "livelink", "vmc", "openseeface", "take"),
    )
    zmq: str = setting("tcp://127.0.0.1:5577", "address at which head parameters are received")
    show_camera: bool = setting(False, "show viewers the raw camera picture until the avatar is good enough")
    background: str = setting(
        "torso",
        "what the head is put over: torso (learned, over calm), calm, room (blurred), #rrggbb, a picture file;"
        " torso+ and any of these",
    )
    render_fps: float = setting(30.0, "avatar pictures a second to aim at", ge=1.0, le=240.0)
    train_share: float = setting(
        0.5, "part of a CPU's cores, or of a GPU's time, that learning may take", ge=0.0, le=1.0
    )
    freeze: bool = setting(False, "show the avatar as it is, learn nothing")
    autosave_s: float = setting(
        10.0, "time between saves of the avatar: what is lost if the program is killed", unit="s", ge=0.1, le=3600.0
    )
    keep_frames: bool = setting(
        False, "keep the pictures that are learned from beside the avatar, to learn from them in the next call, too"
    )
    consent: bool = setting(False, "whoever is learned has agreed that their avatar is kept: noted in its file")


@dataclass(frozen=True)
class Config:
    """Everything that can be configured."""

    run: RunConfig = field(default_factory=RunConfig)
    drivers: DriverSettings = field(default_factory=DriverSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    avatar: AvatarConfig = field(default_factory=AvatarConfig)


@dataclass(frozen=True)
class Setting:
    """One knob: its dotted ``key``, its declared ``type`` and default, and what `setting` says of it."""

    key: str
    type: type
    default: Any
    meaning: str
    unit: str
    ge: float | None
    le: float | None
    choices: tuple[str, ...]


def settings(schema: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Every knob below ``schema``, in the order of declaration."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        key = f"{prefix}{item.name}"
        if is_dataclass(hints[item.name]):
            yield from settings(hints[item.name], f"{key}.")
        else:
            yield Setting(key, hints[item.name], item.default, **item.metadata)


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    return sorted(path.stem for path in _preset_folder().glob("*.toml"))


def resolve_device(name: str) -> str:
    """``cpu`` or ``cuda`` for ``auto | cpu | cuda``; UserError if CUDA is asked for and absent."""
    if name == "cpu":  # without waiting for torch
        return name
    from insta_runtime.avatar import choose_device

    return choose_device(name).type


def load_config(name_or_path: str | None, overrides: Sequence[str] = (), device: str = "auto") -> Config:
    """Build the configuration from a preset or TOML file and ``key=value`` overrides.

    Without ``name_or_path`` the preset follows the device: ``default`` with CUDA, else ``cpu``.  In the
    result ``run.device`` is resolved to ``cpu`` or ``cuda``.  UserError names the first key that is wrong.
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
    config = msgspec.convert(tree, Config)  # every key and value has been checked
    config.stream.check()
    config.drivers.check()
    Background.parse(config.run.background)
    return config


@cache
def _schema() -> dict[str, Setting]:
    return {entry.key: entry for entry in settings()}


def _preset_folder() -> Path:
    """Inside the installed package, or at the root of a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "configs"
    return packaged if packaged.is_dir() else here.parent / "configs"


def _read_preset(name: str) -> Tree:
    if name not in preset_names():
        known = ", ".join(preset_names())
        raise UserError(f"there is no preset '{name}': the presets are {known}; anything else must be a TOML file")
    return _read_file(_preset_folder() / f"{name}.toml")


def _read(name_or_path: str) -> Tree:
    if name_or_path in preset_names():
        return _read_preset(name_or_path)
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        return _read_preset(name_or_path)
    return _read_file(path)


def _read_file(path: Path) -> Tree:
    """The checked contents of a TOML file, on top of the preset that it names, if it names one."""
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
    """``a.b=value`` with the value read as TOML where the knob is no text."""
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise UserError(f"--set takes key=value, got {text!r}")
    _known(key)
    value: Any = raw
    if _schema()[key].type is not str:
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw
    return key, _check(key, value)


def _known(key: str, where: str = "") -> None:
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
    """``value`` if the knob ``key`` admits it, else a UserError that says what it admits."""
    _known(key, where)
    entry = _schema()[key]
    try:
        checked: Any = msgspec.convert(value, entry.type)
    except msgspec.ValidationError:
        raise UserError(f"{where}{key} must be {_words(entry.type)}, got {value!r}") from None
    if entry.choices and checked not in entry.choices:
        raise UserError(f"{where}{key} must be one of {', '.join(entry.choices)}, got {value!r}")
    if isinstance(checked, int | float) and not isinstance(checked, bool):
        low = -math.inf if entry.ge is None else entry.ge
        high = math.inf if entry.le is None else entry.le
        if not (math.isfinite(checked) and low <= checked <= high):
            raise UserError(f"{where}{key} must be {_range(entry)}, got {value!r}")
    return checked


def _words(kind: type) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(kind, f"of type {kind}")


def _range(entry: Setting) -> str:
    unit = f" {entry.unit}" if entry.unit else ""
    if entry.ge is not None and entry.le is not None:
        return f"between {entry.ge:.10g} and {entry.le:.10g}{unit}"
    if entry.ge is not None:
        return f"at least {entry.ge:g}{unit}"
    if entry.le is not None:
        return f"at most {entry.le:g}{unit}"
    return "a finite number"


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in _schema():
            if not value:
                continue
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _nested(key: str, value: Any) -> Tree:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def _merge(base: Tree, change: Tree) -> None:
    """Lay ``change`` over ``base``, in place."""
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            _merge(base[name], value)
        else:
            base[name] = value

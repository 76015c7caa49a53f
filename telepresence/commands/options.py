"""Command-line options that several commands share, and option groups: dataclasses whose fields become options.

A command decorated with `option_groups` takes such dataclasses as parameters; `--help` shows the options of a group
in a panel of their own.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_type_hints

import typer

from insta_runtime.files import atomic_file

if TYPE_CHECKING:
    from telepresence.config import Config

R = TypeVar("R")

CONFIGURATION: Final = "Configuration"
"""Title of the help panel of ``--device``, ``--config`` and ``--set``."""
HEAD_MODEL: Final = "Head model"
"""Title of the help panel of ``--head`` and ``--models``."""

AvatarArgument = Annotated[Path, typer.Argument(metavar="AVATAR", help="Avatar: its folder, or its .safetensors file.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda",
        help="Device that computes; auto: CUDA if there is such a GPU.",
        rich_help_panel=CONFIGURATION,
    ),
]
HeadOption = Annotated[
    Path | None,
    typer.Option(
        "--head",
        metavar="FILE",
        help="FLAME head model (.pkl, .npz); default: the open head model.",
        rich_help_panel=HEAD_MODEL,
    ),
]
ModelsOption = Annotated[
    Path | None,
    typer.Option(
        "--models",
        metavar="DIR",
        envvar="TELEPRESENCE_MODELS",
        help="Folder with the model files of MediaPipe.",
        rich_help_panel=HEAD_MODEL,
    ),
]
CropOption = Annotated[
    str | None,
    typer.Option("--crop", metavar="auto|head|center", help="Window of the camera frame that is tracked."),
]
LearnSizeOption = Annotated[
    int | None,
    typer.Option(
        "--size", metavar="PIXELS", help="Side of the images that are learned from; default: that of the preset."
    ),
]
CropSizeOption = Annotated[
    int | None, typer.Option("--size", metavar="PIXELS", help="Side of the square frames; default: 512.")
]
BackgroundOption = Annotated[
    str | None,
    typer.Option(
        "--background",
        metavar="WORD|FILE",
        help="Background: torso (learned), calm, room (blurred), a colour #rrggbb or an image file; "
        "torso+room puts the learned torso over another background.",
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to this JSON file.")]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE.html", help="Write an HTML report with images and curves."),
]


@dataclass(frozen=True)
class ConfigOptions:
    """Options ``--config`` and ``--set``, which change settings of docs/configuration.md."""

    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE|PRESET",
            help="TOML file or preset; default: the preset for the device.",
            rich_help_panel=CONFIGURATION,
        ),
    ] = None
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one setting (docs/configuration.md); may be given several times.",
            rich_help_panel=CONFIGURATION,
        ),
    ] = None

    def load(self, device: str | None, flags: dict[str, Any] | None = None) -> Config:
        """Load the configuration: the preset or file, then ``--set``, then the ``flags`` that are not None.

        ``flags`` are values of other options by the key of their setting.  UserError names the first invalid key.
        """
        from telepresence.config import load_config

        given = [f"{key}={_as_toml(value)}" for key, value in (flags or {}).items() if value is not None]
        return load_config(self.config, [*(self.changes or []), *given], device or "auto")


@dataclass(frozen=True)
class HeadModelOptions:
    """Options ``--head`` and ``--models``: files that tracking needs."""

    head: HeadOption = None
    models: ModelsOption = None


def option_groups(command: Callable[..., R]) -> Callable[..., R]:
    """Decorate a Typer command so that a parameter whose type is a dataclass becomes one option for each field.

    The command is called with instances of those dataclasses, made from the options that were given.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        assert isinstance(kind, type)
        types = get_type_hints(kind, include_extras=True)
        groups[name] = kind, [item.name for item in fields(kind)]
        parameters += [
            inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=types[item.name]
            )
            for item in fields(kind)
        ]

    @functools.wraps(command)
    def call(**given: Any) -> R:
        built = {name: kind(**{item: given.pop(item) for item in items}) for name, (kind, items) in groups.items()}
        return command(**given, **built)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write ``figures`` to a JSON file atomically; do nothing if ``path`` is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, concurrent=True) as file:
        file.write((json.dumps(figures, indent=2) + "\n").encode())


def _as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

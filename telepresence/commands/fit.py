"""`telepresence fit`: learn an avatar from a recording, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from insta_runtime.errors import UserError
from telepresence.commands.options import (
    ConfigOptions,
    CropOption,
    DeviceOption,
    HeadModelOptions,
    JsonOption,
    LearnSizeOption,
    ReportOption,
    option_groups,
    write_json,
)


@option_groups
def command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Video, tracked folder, or the word [bold]synthetic[/].")
    ],
    out: Annotated[Path, typer.Option(metavar="AVATAR", help="Avatar to write.")],
    settings: ConfigOptions,
    model: HeadModelOptions,
    seconds: Annotated[float, typer.Option(metavar="S", min=0.0, help="Seconds of training.")] = 240.0,
    size: LearnSizeOption = None,
    holdout: Annotated[
        float,
        typer.Option(
            metavar="FRACTION", min=0.0, max=0.9, help="Last part of the frames, held back to measure the avatar on."
        ),
    ] = 0.125,
    crop: CropOption = None,
    device: DeviceOption = None,
    json_file: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """Learn an avatar from a recording as fast as the machine can, and measure it."""
    config = settings.load(device, {"avatar.learn.size": size, "run.crop": crop})
    from insta_runtime.avatar import avatar_file
    from telepresence.measure.offline.recordings import open_recording
    from telepresence.measure.offline.scoring import print_figures
    from telepresence.measure.offline.training import learn_avatar

    for path in (avatar_file(out), report):
        if path is not None:
            _make_folder(path)
    side = config.avatar.learn.size
    recording = open_recording(source, side, holdout, config, model.head, model.models)
    figures = learn_avatar(recording, out, seconds=seconds, size=side, holdout=holdout, config=config, report=report)
    print_figures(figures)
    write_json(json_file, figures)


def _make_folder(path: Path) -> None:
    """Create the folder of a result before the work starts; UserError if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None

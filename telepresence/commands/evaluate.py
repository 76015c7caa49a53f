"""`telepresence evaluate`: measure an avatar against tracked frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from telepresence.commands.options import (
    AvatarArgument,
    ConfigOptions,
    DeviceOption,
    JsonOption,
    ReportOption,
    option_groups,
    write_json,
)


@option_groups
def command(
    avatar: AvatarArgument,
    tracked: Annotated[Path, typer.Argument(metavar="TRACKED", help="Tracked folder of the same person.")],
    settings: ConfigOptions,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", min=32, max=2048, help="Side of the images that are compared; default: as learned."
        ),
    ] = None,
    holdout: Annotated[
        float, typer.Option(metavar="FRACTION", min=0.0, max=1.0, help="Last part of the frames to measure on.")
    ] = 0.125,
    device: DeviceOption = None,
    json_file: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """Measure an avatar against tracked frames."""
    config = settings.load(device)
    from telepresence.measure.offline.evaluation import evaluate_avatar
    from telepresence.measure.offline.scoring import print_figures

    figures = evaluate_avatar(avatar, tracked, size=size, holdout=holdout, config=config, report=report)
    print_figures(figures)
    write_json(json_file, figures)

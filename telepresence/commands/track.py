"""`telepresence track`: write a tracked folder from a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from telepresence.commands.options import (
    ConfigOptions,
    CropOption,
    CropSizeOption,
    HeadModelOptions,
    JsonOption,
    option_groups,
    write_json,
)


@option_groups
def command(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Video of a face, or the word [bold]synthetic[/].")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Tracked folder to write (docs/formats.md).")],
    settings: ConfigOptions,
    model: HeadModelOptions,
    crop: CropOption = None,
    size: CropSizeOption = None,
    focal: Annotated[
        float | None,
        typer.Option(metavar="PIXELS", help="Focal length of the camera; default: 1.2 times the longest side."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Track the face in a video; write the cropped frames, mattes and head states into a folder."""
    config = settings.load("cpu", {"run.crop": crop, "run.size": size})
    from telepresence.measure.offline.video_tracking import track_video

    figures = track_video(video, out, config=config, head=model.head, models=model.models, focal=focal)
    write_json(json_file, figures)

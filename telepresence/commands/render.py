"""`telepresence render`: render an avatar to a video or to images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from insta_runtime.errors import UserError
from telepresence.commands.options import (
    AvatarArgument,
    BackgroundOption,
    ConfigOptions,
    DeviceOption,
    HeadOption,
    option_groups,
)


@option_groups
def command(
    avatar: AvatarArgument,
    settings: ConfigOptions,
    driver: Annotated[
        Path | None, typer.Option(metavar="TAKE", help="Take that moves the face: take.npz or its tracked folder.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="VIDEO", help="Video to write (.mp4, .mov, .mkv).")] = None,
    frames: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write numbered .png images to, instead of a video.")
    ] = None,
    orbit: Annotated[
        float | None, typer.Option(metavar="DEGREES", help="Move the camera around the head by this yaw to both sides.")
    ] = None,
    tilt: Annotated[
        float, typer.Option(metavar="DEGREES", help="With --orbit: also move the camera up and down by this pitch.")
    ] = 0.0,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Use expressions and camera of another person's take unchanged, not mapped."),
    ] = False,
    size: Annotated[
        int, typer.Option(metavar="PIXELS", min=32, max=2048, help="Side of the square video or images.")
    ] = 512,
    background: BackgroundOption = None,
    head: HeadOption = None,
    device: DeviceOption = None,
) -> None:
    """Render an avatar, moved by a take or seen from a moving camera."""
    if (out is None) == (frames is None):
        raise UserError("render writes either a video (--out V.mp4) or images (--frames DIR): give one of the two")
    if driver is None and orbit is None:
        raise UserError("render needs a take that moves the face (--driver TAKE) or a moving camera (--orbit 30)")
    config = settings.load(device, {"run.background": background})
    from telepresence.measure.offline.rendering import render_avatar

    render_avatar(
        avatar,
        driver=driver,
        out=out,
        frames=frames,
        orbit=orbit,
        tilt=tilt,
        raw=raw,
        size=size,
        config=config,
        head=head,
    )

"""`telepresence rehearse`: hold a call with a recording in place of the camera, and measure it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from telepresence.commands.options import (
    ConfigOptions,
    CropOption,
    DeviceOption,
    HeadModelOptions,
    JsonOption,
    LearnSizeOption,
    option_groups,
    write_json,
)
from telepresence.runtime.scratch_folder import system_scratch_folder


@option_groups
def command(
    source: Annotated[Path, typer.Argument(metavar="CLIP|TRACKED", help="Video of a face, or a tracked folder.")],
    settings: ConfigOptions,
    model: HeadModelOptions,
    seconds: Annotated[float, typer.Option(metavar="S", min=1.0, help="Length of the call.")] = 60.0,
    avatar: Annotated[
        Path | None,
        typer.Option(metavar="AVATAR", help="Save the avatar here; continue training it if it exists."),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Compare with an offline fit of the same training time (tracked folders only)."),
    ] = False,
    size: LearnSizeOption = None,
    crop: CropOption = None,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> int:
    """Hold a call in real time with a recording in place of the camera, without a network, and measure it."""
    config = settings.load(device, {"avatar.learn.size": size, "run.crop": crop})
    from telepresence.measure.offline.scoring import without_nan
    from telepresence.measure.rehearsal.clip import open_clip
    from telepresence.measure.rehearsal.offline_comparison import HOLDOUT, compare_with_fit
    from telepresence.measure.rehearsal.rehearsed_call import RehearsedCall
    from telepresence.measure.rehearsal.summary import print_summary

    clip = open_clip(source, model.head, HOLDOUT if offline else 0.0)
    with ExitStack() as stack:
        if avatar is None:
            avatar = stack.enter_context(system_scratch_folder()) / "avatar"
        call = RehearsedCall(clip.name, clip.open, seconds, config, avatar, clip.head, model.models)
        call.run()
        figures = call.figures(clip.seconds)
        figures["clip"] = {"name": clip.name, "seconds": clip.seconds, "fps": clip.fps, **clip.facts}
        if offline:
            figures |= compare_with_fit(avatar, source, clip.head, config)
    figures = without_nan(figures)
    print_summary(figures)
    write_json(json_file, figures)
    return 1 if figures["failure"] is not None else 0

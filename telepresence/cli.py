"""The command line: parses, builds the configuration, and calls one function of `telepresence.commands`.

Importing this module imports no heavy library; a command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from insta_runtime.errors import UserError
from insta_runtime.files import atomic_file
from telepresence import __version__

if TYPE_CHECKING:
    from telepresence.config import Config

app = typer.Typer(
    name="telepresence",
    help="Learns a photo-real avatar of the person before the camera while they talk, and streams it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

AvatarArgument = Annotated[Path, typer.Argument(metavar="AVATAR", help="An avatar: its folder or its .safetensors.")]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE|PRESET", help="A TOML file or a preset; else one that suits the device."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting (docs/configuration.md); repeatable."),
]
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="auto|cpu|cuda", help="Where to compute.")]
HeadOption = Annotated[
    Path | None, typer.Option("--head", metavar="FILE", help="A FLAME file (.pkl, .npz); else the open default head.")
]
ModelsOption = Annotated[
    Path | None,
    typer.Option("--models", metavar="DIR", envvar="TELEPRESENCE_MODELS", help="Folder with MediaPipe's model files."),
]
CropOption = Annotated[
    str | None, typer.Option("--crop", metavar="auto|head|center", help="Which window of the picture to take.")
]
LearnSizeOption = Annotated[
    int | None, typer.Option("--size", metavar="PIXELS", help="Side of the pictures learned from; else the preset's.")
]
CropSizeOption = Annotated[int | None, typer.Option("--size", metavar="PIXELS", help="Side of the picture; 512.")]
BackgroundOption = Annotated[
    str | None,
    typer.Option(
        metavar="WORD|FILE", help="Behind the head: torso, calm, room, #rrggbb or a picture; torso+room and so on."
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to this file.")]
ReportOption = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with pictures and curves.")
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave the process: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    sys.exit(run_command(arguments))


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; an error of the user is one line on stderr."""
    try:
        result = app(arguments, prog_name="telepresence", standalone_mode=False)
    except UserError as error:
        return _complain(str(error))
    except typer.TyperException as error:
        return _complain(f"{error.format_message().rstrip('.')}; see 'telepresence --help'")
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "telepresence", "insta_runtime"):
            raise
        return _complain(f"this needs the Python package {package}, which is not installed: see docs/install.md")
    except OSError as error:
        if error.filename is None:
            raise
        return _complain(f"{error.filename}: {error.strerror}")
    return result if isinstance(result, int) else 0


def _complain(text: str) -> int:
    line = " ".join(text.split())
    typer.echo(f"telepresence: {line}", err=True)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"telepresence {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None and not version:
        typer.echo(context.get_help())


@app.command()
def run(
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="synthetic, webcam[:DEVICE], file:PATH, tracked:DIR, browser; else the webcam, or synthetic.",
        ),
    ] = None,
    avatar: Annotated[
        Path | None, typer.Option(metavar="AVATAR", help="Go on with this avatar if it exists, and save it there.")
    ] = None,
    head: HeadOption = None,
    models: ModelsOption = None,
    port: Annotated[int | None, typer.Option(metavar="N", help="Port of the page; 8080.")] = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Listen there; what others reach needs a token and TLS. 127.0.0.1."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", envvar="TELEPRESENCE_TOKEN", help="What whoever asks the daemon has to show."),
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="Serve https with this certificate, PEM.")
    ] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="The key of the certificate.")] = None,
    publish: Annotated[
        str | None, typer.Option(metavar="URL", help="Publish the avatar to this WHIP address, too.")
    ] = None,
    publish_token: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", envvar="TELEPRESENCE_PUBLISH_TOKEN", help="The token that it asks for."),
    ] = None,
    zmq: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where head parameters are received.")] = None,
    drive: Annotated[
        str | None,
        typer.Option(metavar="auto|tracker|zmq|NAME", help="Who moves the face; auto: who speaks, else the tracker."),
    ] = None,
    drivers: Annotated[
        list[str] | None,
        typer.Option(
            "--driver", metavar="NAME[=WHERE]", help="Listen to livelink, vmc, openseeface; play take=FILE; repeatable."
        ),
    ] = None,
    crop: CropOption = None,
    size: CropSizeOption = None,
    background: BackgroundOption = None,
    track: Annotated[bool, typer.Option("--track", help="Send the synthetic actor through the real tracker.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Open a window with the picture.")] = False,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE.mp4", help="Record what viewers see and hear, and a take beside it (FILE.npz)."),
    ] = None,
    virtual_camera: Annotated[
        bool, typer.Option("--virtual-camera", help="Be a camera for other programs of this machine.")
    ] = False,
    show_camera: Annotated[
        bool, typer.Option("--show-camera", help="Let viewers see the camera until the avatar is good enough.")
    ] = False,
    freeze: Annotated[bool, typer.Option("--freeze", help="Show the avatar without learning on.")] = False,
    keep_frames: Annotated[
        bool, typer.Option("--keep-frames", help="Keep the pictures that are learned from beside the avatar.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.")] = False,
    device: DeviceOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
) -> None:
    """Start the daemon: learn an avatar from a camera and stream it to the page that it prints."""
    from telepresence.drivers.settings import parse_drivers

    flags = {
        "stream.port": port,
        "stream.host": host,
        "stream.access.token": token,
        "stream.access.tls_cert": tls_cert,
        "stream.access.tls_key": tls_key,
        "stream.publish.url": publish,
        "stream.publish.token": publish_token,
        "run.zmq": zmq,
        "run.drive": drive,
        **parse_drivers(drivers or []),
        "run.crop": crop,
        "run.size": size,
        "stream.size": size,
        "run.background": background,
        "run.show_camera": True if show_camera else None,
        "run.freeze": True if freeze else None,
        "run.keep_frames": True if keep_frames else None,
    }
    settings = _configure(config, changes, device, flags)
    from telepresence.commands.run import run as command

    command(
        config=settings,
        source=source,
        avatar=avatar,
        head=head,
        models=models,
        track=track,
        preview=preview,
        record=record,
        virtual_camera=virtual_camera,
        log_json=log_json,
    )


@app.command()
def track(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video of a face, or the word [bold]synthetic[/].")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The tracked folder to write (docs/formats.md).")],
    crop: CropOption = None,
    size: CropSizeOption = None,
    head: HeadOption = None,
    models: ModelsOption = None,
    focal: Annotated[
        float | None, typer.Option(metavar="PIXELS", help="Focal length; else 1.2 x the longest side.")
    ] = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    json_file: JsonOption = None,
) -> None:
    """Track the face of a video and write pictures, mattes and head states into a folder."""
    settings = _configure(config, changes, "cpu", {"run.crop": crop, "run.size": size})
    from telepresence.commands.track import track as command

    figures = command(video=video, out=out, config=settings, head=head, models=models, focal=focal)
    _write_json(json_file, figures)


@app.command()
def fit(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A video, a tracked folder, or the word [bold]synthetic[/].")
    ],
    out: Annotated[Path, typer.Option(metavar="AVATAR", help="The avatar to write.")],
    seconds: Annotated[float, typer.Option(metavar="S", min=0.0, help="How long to learn.")] = 240.0,
    size: LearnSizeOption = None,
    holdout: Annotated[
        float, typer.Option(metavar="PART", min=0.0, max=0.9, help="Last part of the frames, kept back to measure.")
    ] = 0.125,
    crop: CropOption = None,
    head: HeadOption = None,
    models: ModelsOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    json_file: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """Learn an avatar from a recording, as fast as the machine can."""
    settings = _configure(config, changes, device, {"avatar.learn.size": size, "run.crop": crop})
    from telepresence.commands.fit import fit as command

    figures = command(
        source=source,
        out=out,
        seconds=seconds,
        size=settings.avatar.learn.size,
        holdout=holdout,
        config=settings,
        head=head,
        models=models,
        report=report,
    )
    _write_json(json_file, figures)


@app.command()
def evaluate(
    avatar: AvatarArgument,
    tracked: Annotated[Path, typer.Argument(metavar="TRACKED", help="A tracked folder of the same person.")],
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=32, max=2048, help="Side of the pictures; else as learned.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(metavar="PART", min=0.0, max=1.0, help="Last part of the frames to measure on.")
    ] = 0.125,
    device: DeviceOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    json_file: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """Measure an avatar against tracked frames."""
    settings = _configure(config, changes, device)
    from telepresence.commands.evaluate import evaluate as command

    figures = command(avatar=avatar, tracked=tracked, size=size, holdout=holdout, config=settings, report=report)
    _write_json(json_file, figures)


@app.command()
def render(
    avatar: AvatarArgument,
    driver: Annotated[
        Path | None, typer.Option(metavar="TAKE", help="The take that moves the face: take.npz or its folder.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="VIDEO", help="Write an .mp4.")] = None,
    frames: Annotated[Path | None, typer.Option(metavar="DIR", help="Write numbered .png files instead.")] = None,
    orbit: Annotated[
        float | None, typer.Option(metavar="DEGREES", help="Turn the camera around the head by so much.")
    ] = None,
    tilt: Annotated[float, typer.Option(metavar="DEGREES", help="With --orbit: move it up and down by so much.")] = 0.0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Take somebody else's expressions and camera as they are, not mapped.")
    ] = False,
    size: Annotated[int, typer.Option(metavar="PIXELS", min=32, max=2048, help="Side of the picture.")] = 512,
    background: BackgroundOption = None,
    head: HeadOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
) -> None:
    """Render an avatar: driven by any take, or on a turntable."""
    if (out is None) == (frames is None):
        raise UserError("render writes either a video (--out V.mp4) or pictures (--frames DIR): give one of them")
    if driver is None and orbit is None:
        raise UserError("render needs a take to move the face (--driver TAKE), or a turntable (--orbit 30)")
    settings = _configure(config, changes, device, {"run.background": background})
    from telepresence.commands.render import render as command

    command(
        avatar=avatar,
        driver=driver,
        out=out,
        frames=frames,
        orbit=orbit,
        tilt=tilt,
        raw=raw,
        size=size,
        config=settings,
        head=head,
    )


@app.command()
def rehearse(
    source: Annotated[Path, typer.Argument(metavar="CLIP|TRACKED", help="A video of a face, or a tracked folder.")],
    seconds: Annotated[float, typer.Option(metavar="S", min=1.0, help="How long the call is.")] = 60.0,
    avatar: Annotated[
        Path | None, typer.Option(metavar="AVATAR", help="Keep the avatar here, and go on with it if it exists.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Compare with a fit of as much training (a tracked folder only).")
    ] = False,
    size: LearnSizeOption = None,
    crop: CropOption = None,
    head: HeadOption = None,
    models: ModelsOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    json_file: JsonOption = None,
) -> int:
    """Hold a call with a clip as the camera, in real time and without a network, and measure it."""
    settings = _configure(config, changes, device, {"avatar.learn.size": size, "run.crop": crop})
    from telepresence.commands.rehearse import rehearse as command

    figures = command(
        source=source, seconds=seconds, config=settings, avatar=avatar, head=head, models=models, offline=offline
    )
    _write_json(json_file, figures)
    return 1 if figures["failure"] is not None else 0


@app.command()
def send(
    take: Annotated[Path, typer.Argument(metavar="TAKE", help="A take: take.npz or its tracked folder.")],
    zmq: Annotated[str, typer.Option(metavar="ADDRESS", help="Where the daemon receives.")] = "tcp://127.0.0.1:5577",
    loop: Annotated[bool, typer.Option("--loop", help="Start again at the end.")] = False,
) -> None:
    """Play a recorded take into a running daemon."""
    from telepresence.commands.send import send as command

    command(take=take, zmq=zmq, loop=loop)


@app.command()
def bench(
    avatar: AvatarArgument,
    tracked: Annotated[Path, typer.Argument(metavar="TRACKED", help="A tracked folder of the same person.")],
    seconds: Annotated[
        float, typer.Option(metavar="S", min=0.1, max=3600.0, help="Of training alone, and of display beside it.")
    ] = 10.0,
    frames: Annotated[
        int | None, typer.Option(metavar="N", min=2, max=1_000_000, help="Pictures to time; 10000 on a GPU.")
    ] = None,
    size: Annotated[int, typer.Option(metavar="PIXELS", min=32, max=2048, help="Side of the pictures.")] = 512,
    backend: Annotated[str, typer.Option(metavar="auto|cuda|host|torch|tcnn", help="Who computes.")] = "auto",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Measure only this (docs/performance.md); repeatable."),
    ] = None,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure this machine: pictures, training, each kernel, and what they are compared with."""
    settings = _configure(None, None, device)
    from telepresence.commands.bench import bench as command

    figures = command(
        avatar=avatar,
        tracked=tracked,
        backend=backend,
        size=size,
        frames=frames,
        seconds=seconds,
        only=only or (),
        config=settings,
    )
    _write_json(json_file, figures)


@app.command()
def forget(
    avatar: Annotated[
        Path | None, typer.Argument(metavar="AVATAR", help="An avatar: its folder or its .safetensors.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All avatars of calls that were given no place.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete an avatar, its training and the pictures that were kept of it, for good."""
    from telepresence.commands.forget import forget as command

    command(avatar, everything=everything, sure=yes, ask=typer.confirm)


@app.command()
def doctor(
    models: ModelsOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the findings to this file; - prints them.")
    ] = None,
) -> None:
    """Say what this machine has, what is missing, and what to do about it."""
    from telepresence.commands.doctor import doctor as command

    printed = json_file == Path("-")
    findings = command(models=models, quiet=printed)
    if printed:
        typer.echo(json.dumps(findings, indent=2))
    else:
        _write_json(json_file, findings)


def _configure(
    config: str | None,
    changes: Sequence[str] | None,
    device: str | None,
    flags: dict[str, Any] | None = None,
) -> Config:
    """The configuration after the named preset or file, ``--set``, then the flags that were given."""
    from telepresence.config import load_config

    given = [f"{key}={_toml(value)}" for key, value in (flags or {}).items() if value is not None]
    return load_config(config, [*(changes or []), *given], device or "auto")


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write ``figures`` whole or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, concurrent=True) as file:
        file.write((json.dumps(figures, indent=2) + "\n").encode())

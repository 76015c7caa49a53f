"""`telepresence run`: start the daemon and run it until Ctrl-C."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from telepresence.commands.options import (
    BackgroundOption,
    ConfigOptions,
    CropOption,
    CropSizeOption,
    DeviceOption,
    HeadModelOptions,
    option_groups,
)
from telepresence.runtime.end_signals import END_SIGNALS

if TYPE_CHECKING:
    from rich.console import Console

    from telepresence.call.call_options import CallOptions
    from telepresence.config import Config

CAMERA: Final = "Camera and avatar"
"""Title of the help panel of the options for the camera source and the avatar."""
SERVER: Final = "Server"
"""Title of the help panel of the options for the web server and for publishing."""
DRIVERS: Final = "Drivers of the face"
"""Title of the help panel of the options for drivers, the sources of head states."""
OUTPUTS: Final = "Outputs"
"""Title of the help panel of the options for outputs other than the web page."""


@dataclass(frozen=True)
class CameraOptions:
    """Options of `telepresence run` for the camera source and the avatar."""

    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Camera source: synthetic, webcam[:DEVICE], file:PATH, tracked:DIR or browser; "
            "default: the webcam if there is one, else synthetic.",
            rich_help_panel=CAMERA,
        ),
    ] = None
    avatar: Annotated[
        Path | None,
        typer.Option(
            metavar="AVATAR",
            help="Save the avatar here; continue training it if it exists.",
            rich_help_panel=CAMERA,
        ),
    ] = None
    track: Annotated[
        bool,
        typer.Option("--track", help="Track the synthetic actor with the real face tracker.", rich_help_panel=CAMERA),
    ] = False
    show_camera: Annotated[
        bool,
        typer.Option(
            "--show-camera",
            help="Show viewers the camera frame until the avatar is good enough.",
            rich_help_panel=CAMERA,
        ),
    ] = False
    freeze: Annotated[
        bool,
        typer.Option("--freeze", help="Show the avatar without training it.", rich_help_panel=CAMERA),
    ] = False
    keep_frames: Annotated[
        bool,
        typer.Option(
            "--keep-frames",
            help="Keep the frames that are learned from in an archive beside the avatar.",
            rich_help_panel=CAMERA,
        ),
    ] = False

    def settings(self) -> dict[str, Any]:
        """Values of the settings that these options stand for; None where an option was not given."""
        return {
            "run.show_camera": True if self.show_camera else None,
            "run.freeze": True if self.freeze else None,
            "run.keep_frames": True if self.keep_frames else None,
        }


@dataclass(frozen=True)
class ServerOptions:
    """Options of `telepresence run` for the web server, access to it, and publishing to another server."""

    port: Annotated[
        int | None,
        typer.Option(metavar="N", help="TCP port of the web page; default: 8080.", rich_help_panel=SERVER),
    ] = None
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; one that other machines reach needs --token and TLS. Default: 127.0.0.1.",
            rich_help_panel=SERVER,
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            envvar="TELEPRESENCE_TOKEN",
            help="Bearer token that clients must send.",
            rich_help_panel=SERVER,
        ),
    ] = None
    tls_cert: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="TLS certificate (PEM), to serve https.", rich_help_panel=SERVER),
    ] = None
    tls_key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Private key of the certificate (PEM).", rich_help_panel=SERVER),
    ] = None
    publish: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Also publish the stream to this WHIP endpoint.", rich_help_panel=SERVER),
    ] = None
    publish_token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            envvar="TELEPRESENCE_PUBLISH_TOKEN",
            help="Bearer token for the WHIP endpoint.",
            rich_help_panel=SERVER,
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Values of the settings that these options stand for; None where an option was not given."""
        return {
            "stream.port": self.port,
            "stream.host": self.host,
            "stream.access.token": self.token,
            "stream.access.tls_cert": self.tls_cert,
            "stream.access.tls_key": self.tls_key,
            "stream.publish.url": self.publish,
            "stream.publish.token": self.publish_token,
        }


@dataclass(frozen=True)
class DriverOptions:
    """Options of `telepresence run` for drivers, the sources of head states that move the face."""

    zmq: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="ZeroMQ address that receives head states.", rich_help_panel=DRIVERS),
    ] = None
    drive: Annotated[
        str | None,
        typer.Option(
            metavar="auto|tracker|zmq|NAME",
            help="Driver of the face; auto: a driver that is sending, else the tracker.",
            rich_help_panel=DRIVERS,
        ),
    ] = None
    drivers: Annotated[
        list[str] | None,
        typer.Option(
            "--driver",
            metavar="NAME[=WHERE]",
            help="Receive from livelink, vmc or openseeface, or play take=FILE; may be given several times.",
            rich_help_panel=DRIVERS,
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Values of the settings that these options stand for.  UserError for an unknown driver."""
        from telepresence.drivers.driver_settings import parse_drivers

        return {"run.zmq": self.zmq, "run.drive": self.drive, **parse_drivers(self.drivers or [])}


@dataclass(frozen=True)
class OutputOptions:
    """Options of `telepresence run` for outputs other than the web page, and for the log."""

    preview: Annotated[bool, typer.Option("--preview", help="Show the video in a window.", rich_help_panel=OUTPUTS)] = (
        False
    )
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.mp4",
            help="Record video and audio as viewers receive them, and a take beside it (FILE.npz).",
            rich_help_panel=OUTPUTS,
        ),
    ] = None
    virtual_camera: Annotated[
        bool,
        typer.Option(
            "--virtual-camera",
            help="Offer the video to other programs on this machine as a webcam.",
            rich_help_panel=OUTPUTS,
        ),
    ] = False
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log one JSON object per line.", rich_help_panel=OUTPUTS)
    ] = False


@option_groups
def command(
    camera: CameraOptions,
    model: HeadModelOptions,
    server: ServerOptions,
    driver: DriverOptions,
    output: OutputOptions,
    settings: ConfigOptions,
    crop: CropOption = None,
    size: CropSizeOption = None,
    background: BackgroundOption = None,
    device: DeviceOption = None,
) -> None:
    """Start the daemon: learn an avatar from a camera and stream it to the web page whose address is printed."""
    video = {"run.crop": crop, "run.size": size, "stream.size": size, "run.background": background}
    flags = {**server.settings(), **driver.settings(), **video, **camera.settings()}
    config = settings.load(device, flags)
    from telepresence.call.call_options import CallOptions

    options = CallOptions(
        camera.source or default_source(),
        camera.avatar,
        model.head,
        model.models,
        camera.track,
        output.preview,
        output.record,
        output.virtual_camera,
    )
    run(config, options, log_json=output.log_json)


def run(config: Config, options: CallOptions, *, log_json: bool = False) -> None:
    """Run the daemon until SIGINT, SIGTERM or SIGHUP, then save the avatar; `runtime.end_signals` says what more do.

    ``log_json`` logs one JSON object per line.  Raises UserError if the call cannot start, and SystemExit(1) if the
    daemon stopped by itself.
    """
    from rich.console import Console

    from telepresence.call.daemon import Daemon
    from telepresence.runtime.logs import configure

    console = Console(soft_wrap=True, highlight=False)
    configure(as_json=log_json)
    daemon = Daemon(config, options)
    with END_SIGNALS.first_calls(lambda _number: daemon.stopping.set()):
        try:
            once = "?token=TOKEN once" if config.stream.access.token else ""
            daemon.start(lambda address: _say(console, f"telepresence is at [bold]{address}[/]{once}"))
            if not daemon.stopping.is_set():
                _say(console, f"source: {options.source}; avatar: {daemon.avatar_path}; Ctrl-C saves it and stops")
            daemon.wait()
        finally:
            daemon.stop()
    if daemon.failure is not None:
        _say(console, f"telepresence stopped: {daemon.failure}", markup=False)
        raise SystemExit(1)


def _say(console: Console, text: str, *, markup: bool = True) -> None:
    """Print one line, unless the terminal was closed meanwhile."""
    with suppress(OSError):
        console.print(text, markup=markup)


def default_source() -> str:
    """Name of the default camera source: ``webcam`` if there is one, else ``synthetic``."""
    from telepresence.sources.webcam import default_webcam

    return "webcam" if default_webcam() is not None else "synthetic"

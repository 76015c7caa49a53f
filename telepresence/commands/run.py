"""Start the daemon and keep it until it is told to stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from telepresence.config import Config


def run(
    *,
    config: Config,
    source: str | None,
    avatar: Path | None,
    head: Path | None,
    models: Path | None,
    track: bool,
    preview: bool,
    record: Path | None = None,
    virtual_camera: bool = False,
    log_json: bool = False,
) -> None:
    """Run until SIGINT or SIGTERM, then save the avatar and return; a second signal ends the process at once.

    ``source`` None takes the webcam if there is one, else the synthetic actor.  UserError if what was asked for
    cannot be had; SystemExit(1) if the daemon had to stop by itself.  ``log_json``: the log is one JSON object a line.
    """
    from rich.console import Console

    from telepresence.call.camera_manager import Options
    from telepresence.call.daemon import Daemon
    from telepresence.runtime.logs import configure

    console = Console(soft_wrap=True, highlight=False)
    configure(as_json=log_json)

    options = Options(source or default_source(), avatar, head, models, track, preview, record, virtual_camera)
    daemon = Daemon(config, options)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if daemon.stopping.is_set():
            os._exit(130)
        daemon.stopping.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        once = "?token=TOKEN once" if config.stream.access.token else ""
        daemon.start(lambda address: console.print(f"telepresence is at [bold]{address}[/]{once}"))
        if not daemon.stopping.is_set():
            console.print(f"source: {options.source}; avatar: {daemon.avatar_path}; Ctrl-C saves it and stops")
        daemon.wait()
    finally:
        daemon.stop()
        for number, previous in before.items():
            signal.signal(number, previous)
    if daemon.failure is not None:
        console.print(f"telepresence stopped: {daemon.failure}", markup=False)
        raise SystemExit(1)


def default_source() -> str:
    """The webcam if there is one, else the synthetic actor."""
    from telepresence.sources.webcam import default_webcam

    return "webcam" if default_webcam() is not None else "synthetic"

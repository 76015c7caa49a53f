"""`telepresence send`: send the head states of a recorded take to a running daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from insta_runtime.errors import UserError

if TYPE_CHECKING:
    from telepresence.drivers.parameter_message import Basis

CONNECT_S: Final = 5.0
"""Seconds within which the daemon must accept the connection."""


def command(
    take: Annotated[Path, typer.Argument(metavar="TAKE", help="Take: take.npz, or its tracked folder.")],
    zmq: Annotated[str, typer.Option(metavar="ADDRESS", help="ZeroMQ address of the daemon.")] = "tcp://127.0.0.1:5577",
    loop: Annotated[bool, typer.Option("--loop", help="Repeat the take without end.")] = False,
) -> None:
    """Send the head states of a recorded take to a running daemon."""
    send(take=take, zmq=zmq, loop=loop)


def send(*, take: Path, zmq: str, loop: bool) -> None:
    """Send the head states of a take to the daemon at a ZeroMQ address, at the rate at which they were recorded.

    ``take`` is a take.npz or its tracked folder; ``loop`` repeats it without end.  UserError if there is no such take,
    or no daemon at the address.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from insta_runtime.head import fingerprint, load_head
    from insta_runtime.tracked import read_take
    from telepresence.client import ParameterClient
    from telepresence.drivers.take_driver import play_take, take_schedule
    from telepresence.drivers.zeromq_address import check_address

    recorded = read_take(take)
    frames = len(take_schedule(recorded))
    if not frames:
        raise UserError(f"{take} has no frame with a tracked face: track another video")
    check_address(zmq, allow_remote=True)
    # A take identifies its head model by hash only, and the open default head is the only one with ARKit expressions.
    basis: Basis = "arkit52" if recorded.head_sha256 == load_head().sha256 else "flame"
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with (
        ParameterClient(zmq, recorded.head_sha256, basis, fingerprint(recorded.shape)) as client,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
    ):
        if not client.wait(CONNECT_S):
            raise UserError(f"no daemon answers at {zmq}: start 'telepresence run' first, or pass its address as --zmq")
        task = progress.add_task(f"sending to {zmq}", total=frames)
        while True:
            for state in play_take(recorded):
                client.send(state, t_capture_ns=state.t_capture_ns)
                progress.advance(task)
            progress.update(task, completed=frames)
            if not loop:
                return
            progress.reset(task)

"""Play a recorded take into a running daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from insta_runtime.errors import UserError

if TYPE_CHECKING:
    from telepresence.drivers.message import Basis

CONNECT_S: Final = 5.0


def send(*, take: Path, zmq: str, loop: bool) -> None:
    """Send the states of ``take`` (a take.npz or its tracked folder) to the daemon at ``zmq``, at their own pace.

    UserError if there is no such take, or nobody listens at the address.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from insta_runtime.head import fingerprint, load_head
    from insta_runtime.tracked import read_take
    from telepresence.client import ParameterClient
    from telepresence.drivers.take import play, schedule
    from telepresence.drivers.zeromq import check_address

    recorded = read_take(take)
    frames = len(schedule(recorded))
    if not frames:
        raise UserError(f"{take} holds no frame in which a face was tracked: track another video")
    check_address(zmq, allow_remote=True)
    # A take names its head by hash alone, and the open default head is the one that speaks ARKit.
    basis: Basis = "arkit52" if recorded.head_sha256 == load_head().sha256 else "flame"
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with (
        ParameterClient(zmq, recorded.head_sha256, basis, fingerprint(recorded.shape)) as client,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
    ):
        if not client.wait(CONNECT_S):
            raise UserError(f"nobody listens at {zmq}: start 'telepresence run' first, or name its --zmq address")
        task = progress.add_task(f"sending to {zmq}", total=frames)
        while True:
            for state in play(recorded):
                client.send(state, t_capture_ns=state.t_capture_ns)
                progress.advance(task)
            progress.update(task, completed=frames)
            if not loop:
                return
            progress.reset(task)

"""Ends of the commands by signals and kills, with real processes: what is saved, and that no picture stays on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from insta_runtime.avatar import Avatar
from insta_runtime.config import OccupancyConfig
from insta_runtime.head import load_head
from telepresence.runtime.end_signals import SIGNALS
from telepresence.runtime.scratch_folder import SUFFIX
from tests.support.small_avatar import SMALL_AVATAR
from tests.support.small_call import SMALL_CALL, as_options
from tests.support.small_person import CPU, SMALL, camera, neutral_shape, open_head
from tests.support.waiting import until

PROGRAM = (sys.executable, "-m", "telepresence")
HANG_S = 500.0
"""Seconds that only a hanging program takes, however busy the machine is."""
INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL

HANGING_STOP = """
import hashlib
from telepresence.call.daemon import Daemon
from telepresence.cli import main

def hang(self):
    print("hanging", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

Daemon.stop = hang
main()
"""
"""The program with a daemon whose end hangs inside a library, where Python calls no handlers of signals."""


def default_signals() -> None:
    """Restore the default of signals that shells and CI jobs ignore in background processes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


class StartedCommand:
    """A command in a process of its own, with empty folders for everything that it may write."""

    def __init__(self, folder: Path, *arguments: str, program: tuple[str, ...] = PROGRAM, log: str = "log") -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        home = {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("STATE", "DATA")}
        self.environment = {**os.environ, **home, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        self.log = folder / log
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [*program, *arguments],
                env=self.environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                preexec_fn=default_signals,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], object]) -> None:
        until(lambda: condition() or self.process.poll() is not None, HANG_S)
        assert self.process.poll() is None, self.output()

    def send(self, *numbers: int) -> int:
        """Send signals, one right after the other, and return the exit status."""
        for number in numbers:
            self.process.send_signal(number)
        return self.process.wait(HANG_S)

    def assert_one_line(self, name: str) -> None:
        assert "Traceback" not in self.output()
        lines = [line for line in self.output().splitlines() if line.startswith("telepresence: ")]
        assert len(lines) == 1, self.output()
        assert name in lines[0]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., StartedCommand]]:
    running: list[StartedCommand] = []

    def begin(*arguments: str, **options: Any) -> StartedCommand:
        running.append(StartedCommand(tmp_path / "own", *arguments, log=f"log{len(running)}", **options))
        return running[-1]

    yield begin
    for command in running:
        command.process.kill()
        command.process.wait()


def scratch_folders(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(SUFFIX)]


# ---- a call


@pytest.mark.parametrize("numbers", [(TERM, TERM), (HUP, TERM, HUP)], ids=str)
def test_a_call_is_saved(start_daemon: Callable[..., Any], tmp_path: Path, numbers: tuple[int, ...]) -> None:
    daemon = start_daemon(
        "--source=synthetic",
        f"--avatar={tmp_path / 'avatar'}",
        *as_options(SMALL_CALL),
        preexec_fn=default_signals,
    )
    daemon.wait_until(lambda status: status["steps"] >= 2)
    for number in numbers:
        daemon.process.send_signal(number)
    assert daemon.process.wait(HANG_S) == 0, daemon.output()
    assert "Traceback" not in daemon.output()
    assert Avatar.load(tmp_path / "avatar", load_head(), "cpu").steps >= 2


def test_a_call_in_a_terminal_that_is_closed_is_saved(start: Callable[..., StartedCommand], tmp_path: Path) -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        default_signals()

    avatar = tmp_path / "avatar"
    arguments = ("run", "--port=0", "--source=synthetic", f"--avatar={avatar}", *as_options(SMALL_CALL))
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=own_terminal, close_fds=True
    )
    os.close(theirs)
    try:
        printed = b""
        while b"stops" not in printed:  # the line that tells how to stop the call
            printed += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(HANG_S) == 0, printed
    finally:
        process.kill()
        process.wait()


def test_nohup_is_respected(start_daemon: Callable[..., Any], tmp_path: Path) -> None:
    daemon = start_daemon(
        "--source=synthetic",
        f"--avatar={tmp_path / 'avatar'}",
        *as_options(SMALL_CALL),
        preexec_fn=lambda: signal.signal(HUP, signal.SIG_IGN),
    )
    daemon.process.send_signal(HUP)
    steps = daemon.status()["steps"]
    daemon.wait_until(lambda status: status["steps"] > steps)
    daemon.process.send_signal(TERM)
    assert daemon.process.wait(HANG_S) == 0, daemon.output()


@pytest.mark.parametrize(("number", "status"), [(INT, 130), (TERM, 143)])
def test_a_second_signal_later_ends_at_once(start: Callable[..., StartedCommand], number: int, status: int) -> None:
    call = start(
        *("run", "--port=0", "--source=synthetic", *as_options(SMALL_CALL)),
        program=(sys.executable, "-c", HANGING_STOP),
    )
    call.wait_for(lambda: "Ctrl-C" in call.output())
    call.process.send_signal(number)
    call.process.send_signal(number)  # at once: the same request
    call.wait_for(lambda: "hanging" in call.output())
    time.sleep(0.5)
    assert call.process.poll() is None
    call.process.send_signal(HUP)  # no person's impatience
    assert call.send(number) == status


# ---- before the work has begun


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (("run", "--source=synthetic"), TERM),
        (("run", "--source=synthetic"), HUP),
        (("run", "--source=synthetic"), INT),
        (("fit", "synthetic", "--out=avatar"), HUP),
        (("track", "synthetic", "--out=tracked"), TERM),
        (("rehearse", "clip.mp4"), TERM),
        (("render", "avatar", "--orbit=30", "--out=v.mp4"), HUP),
        (("evaluate", "avatar", "tracked"), TERM),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value.name,
)
def test_a_command_that_has_just_begun(
    start: Callable[..., StartedCommand], tmp_path: Path, command: tuple[str, ...], number: int
) -> None:
    pipe = tmp_path / "config.toml"
    os.mkfifo(pipe)  # keeps the command waiting for its configuration
    started = start(*command, f"--config={pipe}")
    opened = threading.Event()

    def hold() -> None:
        with pipe.open("w"):  # returns once the command reads
            opened.set()
            started.process.wait()

    threading.Thread(target=hold, daemon=True).start()
    started.wait_for(opened.is_set)
    assert started.send(number, number) == 128 + number
    assert "Traceback" not in started.output()
    if number != INT:
        started.assert_one_line(signal.Signals(number).name)


# ---- pictures on disk


def start_tracking(start: Callable[..., StartedCommand], out: Path) -> StartedCommand:
    """`track` of the actor, once it has written pictures."""
    command = start("track", "synthetic", "--out", str(out), "--size=64")
    command.wait_for(lambda: list(out.parent.rglob("*.jpg")))
    return command


@pytest.mark.parametrize(
    "numbers",
    [(TERM, TERM), (HUP,), (INT, HUP), (signal.SIGQUIT,), (signal.SIGUSR1,), (signal.SIGALRM,), (signal.SIGXCPU,)],
    ids=str,
)
def test_track_leaves_nothing_behind(
    start: Callable[..., StartedCommand], tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    out = tmp_path / "results" / "tracked"
    command = start_tracking(start, out)
    assert command.send(*numbers) in {128 + number for number in numbers}
    assert list(out.parent.iterdir()) == []
    assert list(command.temporary.iterdir()) == []
    assert list(command.folder.rglob("*.json")) == []
    assert "Traceback" not in command.output()


def test_the_next_command_removes_the_pictures_of_a_killed_one_but_not_those_of_a_running_one(
    start: Callable[..., StartedCommand], tmp_path: Path
) -> None:
    killed = start_tracking(start, tmp_path / "killed" / "tracked")
    assert killed.send(KILL) == -KILL
    (left,) = scratch_folders(tmp_path)
    running = start_tracking(start, tmp_path / "running" / "tracked")
    assert f"removed {left}, " in running.output()
    assert list((tmp_path / "killed").iterdir()) == []
    done = subprocess.run([*PROGRAM, "--version"], env=running.environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(scratch_folders(tmp_path)) == 1
    assert running.send(TERM) == 128 + TERM
    assert scratch_folders(tmp_path) == []


WATCHED = """
import os, sys

def watch(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        os.write(2, f"WRITES {arguments[0]}\\n".encode())

sys.addaudithook(watch)
from telepresence.cli import main
main()
"""
"""The program, which prints the path of every file that it opens for writing."""


def test_fit_of_a_video_never_writes_a_picture(
    start: Callable[..., StartedCommand], shared: Path, models: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "face.mp4"
    cut(shared / "clips" / "d18.mp4", clip, 20)
    avatar = tmp_path / "out" / "avatar"
    fit = start(
        *("fit", str(clip), f"--out={avatar}", f"--models={models}", "--seconds=0.5", "--size=48", "--device=cpu"),
        *("--set=run.size=256", *as_options(SMALL_AVATAR)),
        program=(sys.executable, "-c", WATCHED),
    )
    assert fit.process.wait(HANG_S) == 0, fit.output()
    written = [line.split(" ", 1)[1] for line in fit.output().splitlines() if line.startswith("WRITES ")]
    assert any("avatar.safetensors" in path for path in written), "the hook works"
    own = [path for path in written if not path.startswith("/dev/")]
    assert [path for path in own if Path(path).suffix in (".jpg", ".png", ".npz")] == []
    assert [path for path in fit.temporary.rglob("*") if path.is_file()] == []


def cut(source: Path, target: Path, count: int) -> None:
    """The first ``count`` frames of a video."""
    import av

    with av.open(str(source)) as clip, av.open(str(target), "w") as film:
        stream = None
        for _, frame in zip(range(count), clip.decode(video=0), strict=False):
            if stream is None:
                stream = film.add_stream("libx264", rate=30, width=frame.width, height=frame.height)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")))
        assert stream is not None
        film.mux(stream.encode())


def test_render_leaves_nothing_behind(start: Callable[..., StartedCommand], tmp_path: Path) -> None:
    out = tmp_path / "films" / "film.mp4"
    create_avatar(tmp_path / "avatar")
    render = start("render", str(tmp_path / "avatar"), "--orbit=30", f"--out={out}", "--device=cpu", "--size=512")
    render.wait_for(lambda: scratch_folders(out.parent))
    assert render.send(TERM) == 128 + TERM, render.output()
    assert list(out.parent.iterdir()) == []
    render.assert_one_line("SIGTERM")


def create_avatar(path: Path) -> None:
    config = replace(SMALL, occupancy=OccupancyConfig(resolution=16))
    head = open_head()
    Avatar.create(head, neutral_shape(head), camera(48), config, CPU).save(path)

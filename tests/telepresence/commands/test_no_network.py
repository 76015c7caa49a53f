"""No command looks a name up or reaches for another machine; the system is watched by strace (docs/security.md)."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.network_trace import NetworkTrace
from tests.support.small_call import SMALL_CALL, as_options
from tests.support.studio import DataChannelCalls
from tests.support.without_network import without_network

SHORT, LONG = 12, 60
"""Numbers of frames: of a recording, and of a clip that calibrates a call, in which it is repeated."""
SMALL_FIT = ("--size=48", "--device=cpu", "--seconds=1", *as_options(SMALL_CALL))

LOOK_UP = """
import contextlib, socket
def report():
    with contextlib.suppress(OSError):
        socket.getaddrinfo("telemetry.invalid.example", 443)
"""
CONNECT = """
import contextlib, socket
def report(family=socket.AF_INET, address="192.0.2.1"):
    with contextlib.suppress(OSError):
        connection = socket.socket(family)
        connection.settimeout(0.2)
        connection.connect((address, 443))
"""
DATAGRAM = """
import contextlib, socket
def report():
    with contextlib.suppress(OSError):
        socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))
"""
REPORTS = {
    "name": LOOK_UP + "report()",
    "connection": CONNECT + "report()",
    "IPv6": CONNECT + "report(socket.AF_INET6, '2001:db8::1')",
    "datagram": DATAGRAM + "report()",
    "thread": LOOK_UP + "import threading\nthread = threading.Thread(target=report)\nthread.start()\nthread.join()",
    "child": f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {LOOK_UP + 'report()'!r}])",
    "exit": CONNECT + "import atexit\natexit.register(report)",
}
"""Programs that report like a dependency might, by their way to do so."""
LOCAL = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", server.getsockname())
one, other = socket.socketpair()
one.send(b"x")
"""


@pytest.fixture
def cut(shared: Path, tmp_path: Path) -> Callable[[int], Path]:
    """``cut(frames)``: the beginning of a real clip."""

    def write(frames: int) -> Path:
        import av

        path = tmp_path / "face.mp4"
        with av.open(str(shared / "clips" / "d18.mp4")) as source, av.open(str(path), "w") as target:
            stream = None
            for _, frame in zip(range(frames), source.decode(video=0), strict=False):
                if stream is None:
                    stream = target.add_stream("libx264", rate=30, width=frame.width, height=frame.height)
                rgb = frame.to_ndarray(format="rgb24")
                target.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            assert stream is not None
            target.mux(stream.encode())
        return path

    return write


def finish(trace: NetworkTrace, *command: str) -> list[str]:
    """Attempts of a command that must succeed."""
    done = subprocess.run(
        [*trace.prefix, sys.executable, *command], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return trace.attempts()


def test_tracking_a_video(cut: Callable[[int], Path], models: Path, tmp_path: Path) -> None:
    track = ("-m", "telepresence", "track", str(cut(SHORT)), f"--out={tmp_path / 'tracked'}", f"--models={models}")
    assert finish(NetworkTrace(tmp_path), *track, "--size=64") == []


def test_the_checks_of_the_machine(models: Path, tmp_path: Path) -> None:
    assert finish(NetworkTrace(tmp_path), "-m", "telepresence", "doctor", f"--models={models}") == []


def test_learning_from_a_video(cut: Callable[[int], Path], models: Path, tmp_path: Path) -> None:
    fit = ("-m", "telepresence", "fit", str(cut(SHORT)), f"--out={tmp_path / 'avatar'}", f"--models={models}")
    assert finish(NetworkTrace(tmp_path), *fit, *SMALL_FIT) == []


def test_a_call_with_a_viewer_recalibration_and_its_end(
    start_daemon: Callable[..., Any], cut: Callable[[int], Path], models: Path, tmp_path: Path
) -> None:
    trace = NetworkTrace(tmp_path)
    daemon = start_daemon(
        f"--source=file:{cut(LONG)}",
        f"--models={models}",
        f"--avatar={tmp_path / 'avatar'}",
        *as_options(SMALL_CALL),
        program=(*trace.prefix, sys.executable, "-m", "telepresence"),
    )
    daemon.wait_until(lambda status: status["tracking"]["state"] == "tracking" and status["steps"] > 0)

    async def recalibrate() -> dict[str, Any]:
        answers: asyncio.Queue[str] = asyncio.Queue()
        async with DataChannelCalls()(f"{daemon.address}/", labels=("control",)) as (control,):
            control.on("message", answers.put_nowait)
            control.send(json.dumps({"type": "recalibrate"}))
            answer: dict[str, Any] = json.loads(await asyncio.wait_for(answers.get(), 60))
            return answer

    assert asyncio.run(recalibrate()) == {"type": "done", "of": "recalibrate"}
    daemon.wait_until(lambda status: status["tracking"]["state"] == "calibrating")
    daemon.wait_until(lambda status: status["tracking"]["state"] == "tracking")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=120) == 0, daemon.output()
    assert trace.attempts() == []


@pytest.mark.parametrize("way", REPORTS)
def test_a_program_that_reports_is_seen(way: str, tmp_path: Path) -> None:
    """Whether or not the machine has a network: the attempt counts."""
    assert finish(NetworkTrace(tmp_path), "-c", REPORTS[way])


def test_what_stays_on_the_machine_is_not_counted(tmp_path: Path) -> None:
    assert finish(NetworkTrace(tmp_path), "-c", LOCAL) == []


def test_the_report_of_mediapipe_is_seen(models: Path, tmp_path: Path) -> None:
    """The reason for LiteRT.  In a network namespace, so that the test itself reports nothing."""
    pytest.importorskip("mediapipe")
    apart = without_network()
    program = (
        "from pathlib import Path\n"
        "from telepresence.tracking.face_models import FaceModels\n"
        f"FaceModels(Path({str(models)!r}), 'mediapipe').segmenter(live=False).close()\n"
    )
    trace = NetworkTrace(tmp_path)
    done = subprocess.run(
        [*apart, *trace.prefix, sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "reports its use to its vendor" in done.stderr
    assert trace.attempts()

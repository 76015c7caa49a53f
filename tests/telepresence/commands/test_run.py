"""`telepresence run` as a user meets it: one clear line for what is wrong, and a clean end."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from insta_runtime.avatar import Avatar
from insta_runtime.head import load_head
from tests.support.small_call import SMALL_CALL, as_options

WITHOUT_MEDIAPIPE = """
import sys
sys.modules.update(mediapipe=None, cv2=None)
from telepresence.cli import main
main()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "telepresence", "run", "--port=0", *as_options(SMALL_CALL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def assert_one_line(finished: subprocess.CompletedProcess[str], *words: str) -> None:
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    lines = [line for line in finished.stderr.splitlines() if line.startswith("telepresence: ")]
    assert len(lines) == 1, finished.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(("name", "content"), [("empty.mp4", b""), ("text.mp4", b"Dear diary,\n" * 100)])
def test_a_file_that_is_no_video(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert_one_line(run(f"--source=file:{tmp_path / name}"), name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert_one_line(run(f"--source=file:{tmp_path}/nothing.mp4"), "nothing.mp4")


def test_a_webcam_that_is_not_there() -> None:
    assert_one_line(run("--source=webcam:/dev/video99"), "/dev/video99", "--source synthetic")


def test_a_source_that_does_not_exist() -> None:
    assert_one_line(run("--source=crystal-ball"), "crystal-ball", "synthetic")


def test_parameters_from_other_machines_are_not_taken() -> None:
    assert_one_line(run("--source=browser", "--set=run.zmq=tcp://0.0.0.0:5577"), "loopback")


def test_sigterm_saves_the_avatar_and_the_end_is_clean(start_daemon: Callable[..., Any], tmp_path: Path) -> None:
    """With the actor, who needs neither MediaPipe nor OpenCV: both are blocked."""
    program = (sys.executable, "-c", WITHOUT_MEDIAPIPE)
    daemon = start_daemon(
        "--source=synthetic", f"--avatar={tmp_path / 'avatar'}", *as_options(SMALL_CALL), program=program
    )
    daemon.wait_until(lambda status: status["steps"] >= 2)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=600) == 0, daemon.output()
    assert "Traceback" not in daemon.output()
    assert f"telepresence is at {daemon.address}/" in daemon.output()
    assert str(tmp_path / "avatar") in daemon.output()
    assert Avatar.load(tmp_path / "avatar", load_head(), "cpu").steps >= 2


def test_a_video_whose_face_leaves_and_returns(
    start_daemon: Callable[..., Any], shared: Path, models: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "comes_and_goes.mp4"
    film(shared / "clips" / "d9.mp4", clip)
    daemon = start_daemon(
        f"--source=file:{clip}", f"--models={models}", f"--avatar={tmp_path / 'avatar'}", *as_options(SMALL_CALL)
    )
    daemon.wait_until(lambda status: status["state"] in ("learning", "live"))
    daemon.wait_until(lambda status: status["state"] == "lost")
    daemon.wait_until(lambda status: status["state"] in ("learning", "live"))
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.output()


def film(source: Path, target: Path) -> None:
    """Six seconds of a face, then four of an empty grey room."""
    import av
    import numpy as np

    with av.open(str(source)) as clip, av.open(str(target), "w") as film:
        faces = [frame.to_ndarray(format="rgb24") for _, frame in zip(range(60), clip.decode(video=0), strict=False)]
        stream = film.add_stream("libx264", rate=10)
        stream.height, stream.width = faces[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        room = np.full_like(faces[0], 90)
        for picture in [*faces, *[room] * 40]:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())

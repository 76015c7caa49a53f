"""The running daemon records its call, and goes on without a virtual camera if the machine has none."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from insta_runtime.head import load_head
from insta_runtime.tracked import read_take
from tests.support.small_call import SMALL_CALL, as_options


def test_a_call_is_recorded_with_the_states_that_were_rendered(
    start_daemon: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "call.mp4"
    daemon = start_daemon(
        "--source=synthetic",
        *as_options(SMALL_CALL),
        f"--avatar={tmp_path / 'avatar'}",
        f"--record={path}",
        "--virtual-camera",
    )
    daemon.wait_until(lambda status: status["mesh_psnr_db"] is not None)
    end = time.monotonic() + 120
    while not (tmp_path / "call.npz").exists() or read_take(tmp_path / "call.npz").valid.sum() < 8:
        assert time.monotonic() < end, "no states are written"
        time.sleep(0.2)
    status = daemon.status()
    assert [line for line in status["errors"] if not line.startswith("virtual camera: there is none")] == []
    assert status["viewers"] == 0
    daemon.stop()

    with av.open(str(path)) as container:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [frame.time for frame in container.decode(audio=0)]
    times = [at for at, _ in pictures]
    assert pictures[0][1].shape == (128, 128, 3)
    assert (np.diff(times) > 0).all()
    assert abs(sound[-1] - times[-1]) < 0.2
    first, last = pictures[0][1].astype(int), pictures[-1][1].astype(int)
    assert np.abs(last - first).mean() > 3  # from a card to a head

    take = read_take(tmp_path / "call.npz")
    assert take.head_sha256 == load_head(None).sha256
    assert take.valid.sum() >= 8
    assert take.camera.width == 128
    assert take.states[-1].t_capture_ns * 1e-9 == pytest.approx(times[-1], abs=0.005)
    assert np.ptp([state.expression for state in take.states], axis=0).max() > 0.02  # the actor acts

    log = daemon.output()
    assert "virtual camera: there is none: " in log or "the avatar is the camera " in log


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "call.mp4").write_bytes(b"precious")
    command = [
        sys.executable,
        "-m",
        "telepresence",
        "run",
        "--port=0",
        "--source=synthetic",
        *as_options(SMALL_CALL),
        f"--record={tmp_path / 'call.mp4'}",
    ]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 2
    assert "call.mp4 exists" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert (tmp_path / "call.mp4").read_bytes() == b"precious"

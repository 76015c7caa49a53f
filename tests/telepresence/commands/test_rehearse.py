"""`rehearse`: a tracked folder plays as a live camera through the whole daemon, without network libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from insta_runtime.avatar import Avatar
from insta_runtime.errors import UserError
from telepresence.cli import run_command
from telepresence.measure.offline.video_tracking import write_ground_truth_folder
from telepresence.measure.rehearsal.clip import open_clip
from telepresence.runtime.frames import CameraFrame, GroundTruth
from tests.support.flame_layout import flame_layout, write_npz
from tests.support.small_avatar import SMALL_AVATAR_OPTIONS
from tests.support.small_person import neutral_shape, open_head, paint, performance, photograph

SIZE, COUNT = 64, 16
SMALL = (
    "--device=cpu",
    "--set=run.size=64",
    "--set=run.render_fps=10",
    "--set=stream.size=64",
    "--set=avatar.warp.cell=0.025",
    "--set=avatar.radiance.finest=64",
    "--set=avatar.learn.size=32",
    "--set=avatar.torso.size=64",
    *SMALL_AVATAR_OPTIONS,
)

REFUSING = """
import sys

class Refuse:
    refused = {"av", "aiortc", "aiohttp", "mediapipe", "cv2", "zmq", "pygame", "platformdirs"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.refused:
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, Refuse())
import torch
from telepresence.cli import run_command
torch.set_num_threads(1)
sys.exit(run_command(sys.argv[1:]))
"""


def _frames() -> Iterator[CameraFrame]:
    head = open_head()
    for seen in photograph(head, performance(head, COUNT), SIZE, paint(head)):
        truth = GroundTruth(seen.state, seen.alpha, seen.camera)
        yield CameraFrame(seen.frame_id, seen.frame_id * 40_000_000, seen.rgb, truth)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rehearse") / "tracked"
    head = open_head()
    write_ground_truth_folder(_frames(), path, head=head, shape=neutral_shape(head), fps=8.0, size=SIZE, source="test")
    return path


LENGTHS_S = (10, 60)
"""Seconds of a call; the longer one is held if a busy machine has published no weights in the shorter one."""


def _rehearse_without_network(folder: Path, answer: Path, avatar: Path) -> dict[str, Any]:
    """Figures of the first call of `LENGTHS_S` in which the avatar could be measured."""
    figures: dict[str, Any] = {}
    for seconds in LENGTHS_S:
        arguments = ["rehearse", str(folder), f"--seconds={seconds}", f"--json={answer}", f"--avatar={avatar}", *SMALL]
        done = subprocess.run(
            [sys.executable, "-c", REFUSING, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        figures = json.loads(answer.read_text())
        if figures["curve"]:
            break
    return figures


def test_a_call_without_network_is_measured(folder: Path, tmp_path: Path) -> None:
    """Libraries of cameras, codecs and networks cannot be imported; the avatar is saved and can be loaded."""
    avatar = tmp_path / "avatar"
    figures = _rehearse_without_network(folder, tmp_path / "figures.json", avatar)
    assert figures["failure"] is None
    assert figures["resources"]["lost_threads"] == []
    assert figures["status"]["zmq"] is None
    assert figures["status"]["source"] == "rehearsal of tracked"
    assert figures["clip"]["seconds"] == 2.0

    assert figures["faces"] == figures["camera_pictures_tracked"] > 0
    assert figures["steps"] > 0
    assert figures["publications"] > 0
    seconds, points = figures["seconds"], {point["seconds"]: point for point in figures["curve"]}
    moments = list(points)
    assert moments == sorted(moments)
    assert moments[-1] == seconds
    assert points[seconds]["psnr_db"] > 5.0
    assert points[seconds]["seen_in_earlier_rounds"] is True
    for moment in (10, 60):
        assert figures[f"psnr_next2s_at_{moment}s"] == points.get(moment, {}).get("psnr_db")
        assert figures[f"seen_in_earlier_rounds_at_{moment}s"] == points.get(moment, {}).get("seen_in_earlier_rounds")
    assert all(point["published_s"] <= point["seconds"] for point in figures["curve"])
    if moments[0] <= seconds / 2.0:  # on a slow machine no weights were published by then
        assert figures["forgetting_db"] is not None
        assert figures["early_s"] == seconds / 2.0
    assert figures["first_picture_s"] >= 0.0

    # Frames go to the encoder at the declared rate, 5 % more at most, whatever the camera's rate is.
    spread, fresh = figures["interval_ms"], figures["fresh_interval_ms"]
    assert 0 < fresh["count"] <= spread["count"] <= 1.05 * 30.0 * figures["lasted_s"]
    assert spread["p50"] <= spread["p99"] <= spread["max"]
    assert fresh["p50"] >= spread["p50"]

    assert Avatar.load(avatar, open_head(), "cpu").steps >= figures["curve"][-1]["steps"]


def test_against_an_offline_fit_the_end_of_the_clip_is_shown_to_neither(folder: Path, tmp_path: Path) -> None:
    answer, figures = tmp_path / "figures.json", {}
    for seconds in (3, 30):  # a busy machine may have learned nothing in the short call
        assert (
            run_command(["rehearse", str(folder), f"--seconds={seconds}", "--offline", f"--json={answer}", *SMALL]) == 0
        )
        figures = json.loads(answer.read_text())
        if "offline" in figures:
            break
    compared = figures["offline"]
    assert figures["clip"]["seconds"] == (COUNT - 2) / 8.0
    assert compared["pictures"] == 2
    assert compared["online_steps"] > 0
    assert compared["training_seconds"] == pytest.approx(figures["training_seconds"], abs=1e-3)
    assert figures["online_minus_offline_db"] == pytest.approx(
        compared["online_psnr_db"] - compared["offline_psnr_db"], abs=1e-3
    )


def test_what_cannot_be_played_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert run_command(["rehearse", str(tmp_path / "nothing")]) == 2
    assert "no video or tracked folder" in capsys.readouterr().err
    assert run_command(["rehearse", str(folder / "take.npz"), "--offline"]) == 2
    assert "--offline needs" in capsys.readouterr().err
    assert run_command(["rehearse", str(folder / "take.npz")]) == 2
    assert "not a readable video" in capsys.readouterr().err


def test_a_folder_says_with_which_head_it_was_tracked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another head model"):
        open_clip(folder, write_npz(tmp_path / "head.npz", flame_layout()))
    clip = open_clip(folder, None)
    assert (clip.head, clip.fps, clip.seconds) == (None, 8.0, 2.0)
    assert clip.facts["head_model"] == open_head().name

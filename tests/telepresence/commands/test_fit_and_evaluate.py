"""`fit`, `evaluate` and `render` on a tracked folder: required packages, figures, and files that they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from PIL import Image

from insta_runtime.avatar import Avatar
from insta_runtime.tracked import TrackedFolder
from telepresence.cli import run_command
from telepresence.measure.offline import recordings, video_tracking
from telepresence.measure.offline.video_tracking import write_ground_truth_folder
from telepresence.runtime.frames import CameraFrame, GroundTruth
from telepresence.tracking.calibration import Calibration
from tests.support.small_avatar import SMALL_AVATAR_OPTIONS
from tests.support.small_person import neutral_shape, open_head, paint, performance, photograph

SIZE, COUNT = 48, 6
SMALL = (
    "--device=cpu",
    "--set=avatar.warp.cell=0.025",
    "--set=avatar.radiance.finest=64",
    *SMALL_AVATAR_OPTIONS,
)
ASKED = {"psnr_db", "ssim", "head_psnr_db", "mesh_head_psnr_db", "curve", "steps", "train_frames", "holdout_frames"}

BY_REGION = [
    f"{region}{metric}" for region in ("", "head_", "mouth_", "eyes_") for metric in ("psnr_db", "ssim", "flip")
]

BLOCKED = """
import sys
for name in ("av", "aiortc", "aiohttp", "mediapipe", "cv2", "zmq", "pygame", "platformdirs", "prometheus_client"):
    sys.modules[name] = None
import torch
from telepresence.cli import run_command
torch.set_num_threads(1)
folder, out, *small = sys.argv[1:]
avatar = out + "/avatar"
for arguments in (
    ["fit", folder, "--out", avatar, "--seconds=0.5", "--size=32", "--holdout=0.34", f"--json={out}/fit.json", *small],
    [
        "evaluate", avatar, folder, "--device=cpu", "--holdout=0.34", f"--json={out}/evaluate.json",
        f"--report={out}/report.html",
    ],
    ["render", avatar, "--device=cpu", "--driver", folder, "--size=32", f"--frames={out}/pictures"],
):
    assert run_command(arguments) == 0, arguments
"""


def _frames() -> Iterator[CameraFrame]:
    head = open_head()
    for seen in photograph(head, performance(head, COUNT), SIZE, paint(head)):
        yield CameraFrame(
            seen.frame_id, seen.frame_id * 40_000_000, seen.rgb, GroundTruth(seen.state, seen.alpha, seen.camera)
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tracked"
    head = open_head()
    write_ground_truth_folder(_frames(), path, head=head, shape=neutral_shape(head), fps=25.0, size=SIZE, source="test")
    return path


def test_a_tracked_folder_needs_no_camera_no_codec_no_network(folder: Path, tmp_path: Path) -> None:
    _with_calibration(folder, _calibration().to_json())
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(folder), str(tmp_path), *SMALL],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads((tmp_path / "fit.json").read_text())
    assert figures.keys() >= ASKED
    assert (figures["train_frames"], figures["holdout_frames"], figures["device"]) == (4, 2, "cpu")
    assert figures["steps"] > 0
    last = {name: figures[name] for name in ("seconds", "steps", "psnr_db", "head_psnr_db")}
    assert figures["curve"][-1] == last
    assert json.loads((tmp_path / "avatar" / "fit.json").read_text()) == figures
    again = json.loads((tmp_path / "evaluate.json").read_text())
    # The saved avatar is the one that was measured.
    assert again["psnr_db"] == pytest.approx(figures["psnr_db"], abs=1e-3)
    assert (again["pictures"], again["steps"]) == (2, figures["steps"])
    for name in BY_REGION:
        assert again[name] == pytest.approx(figures[name], rel=1e-3)
    assert again["protocol"].keys() >= {"clip", "split", "crop", "size", "head", "background", "tracker", "smoothing"}
    assert "2 of 6, frames 4 to 5" in again["protocol"]["split"]
    assert [picture["frame"] for picture in again["each"]] == [4, 5]
    assert fmean(picture["eyes_psnr_db"] for picture in again["each"]) == pytest.approx(again["eyes_psnr_db"], abs=1e-3)
    assert again["curve"][-1]["psnr_db"] == figures["psnr_db"], "the curve of fit is repeated"
    assert again["lpips"] is None
    assert "not measured" in again["protocol"]["lpips"]
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="strip"') == 2
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"{i:06d}.png" for i in range(COUNT)]
    shown = np.asarray(Image.open(pictures[0]))
    assert shown.shape == (32, 32, 3)
    assert shown.min() < 200, "the image shows a head"


def _calibration() -> Calibration:
    head = open_head()
    zeros = np.zeros((478, 3), np.float32), np.zeros((2, 2), np.float32)
    return Calibration(640, 480, 800.0, neutral_shape(head), *zeros, 1.0, head.sha256)


def _with_calibration(folder: Path, text: object) -> None:
    meta = folder / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "calibration": text}))


def test_the_calibration_of_the_recording_is_saved_in_the_avatar(folder: Path, tmp_path: Path) -> None:
    _with_calibration(folder, _calibration().to_json())
    avatar = tmp_path / "people" / "me.safetensors"  # a file serves as well as a folder
    arguments = ["fit", str(folder), "--out", str(avatar), "--seconds", "0", "--size", "32", *SMALL]
    assert run_command(arguments) == 0
    stored = Avatar.load(avatar, open_head(), "cpu").calibration
    assert stored is not None
    assert Calibration.from_json(json.dumps(stored)).focal == 800.0


@pytest.mark.parametrize("text", ["", "{}", "[", 3, {"version": 1}])
def test_a_damaged_calibration_is_one_line(
    folder: Path, tmp_path: Path, text: object, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_calibration(folder, text)
    assert run_command(["fit", str(folder), "--out", str(tmp_path / "avatar"), "--size", "32", *SMALL]) == 2
    assert "calibration" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_actor_is_also_measured_from_views_that_were_not_learned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recordings, "ACTOR_FRAMES", 4)
    figures_file = tmp_path / "fit.json"
    arguments = ["fit", "synthetic", "--out", str(tmp_path / "avatar"), "--seconds", "0", "--size", "32"]
    assert run_command([*arguments, "--holdout", "0.5", "--json", str(figures_file), *SMALL]) == 0
    figures = json.loads(figures_file.read_text())
    assert figures.keys() >= {*ASKED, "device"}
    for name in ("unseen_yaw20", "unseen_yaw30", "unseen_pitch15"):
        assert figures[f"{name}_psnr_db"] > 0.0
        assert "degrees" in figures["protocol"][name]


def test_the_actor_can_be_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(video_tracking, "ACTOR_FRAMES", 2)
    assert run_command(["track", "synthetic", "--out", str(tmp_path / "take"), "--size", "64"]) == 0
    folder = TrackedFolder.open(tmp_path / "take")
    assert folder.frames.tolist() == [0, 1]
    assert folder.meta["source"] == "synthetic"
    assert folder.alpha(1).max() == 255


def test_without_held_back_frames_nothing_is_measured(folder: Path, tmp_path: Path) -> None:
    answer, page = tmp_path / "fit.json", tmp_path / "fit.html"
    arguments = ["fit", str(folder), "--out", str(tmp_path / "avatar"), "--seconds", "0", "--holdout", "0"]
    assert run_command([*arguments, "--json", str(answer), "--report", str(page), *SMALL]) == 0
    figures = json.loads(answer.read_text())
    assert figures["each"] == []
    assert figures["psnr_db"] is figures["eyes_flip"] is figures["steadiness"] is None
    assert figures["size"] == SIZE, "frames are never enlarged"
    assert "measured on 0 frames" in page.read_text()


def test_too_few_frames_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", str(folder), "--out", str(tmp_path / "avatar"), "--holdout", "0.9", "--size", "32", *SMALL]
    assert run_command(arguments) == 2
    assert "too few" in capsys.readouterr().err

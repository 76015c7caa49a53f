"""`telepresence bench` on a tiny avatar: required packages, figures, and error messages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from insta_runtime.avatar import Avatar
from telepresence.cli import run_command
from telepresence.measure.bench.frame import i420
from telepresence.measure.bench.suite import KEYS, PARTS
from telepresence.measure.bench.timing import cycled, percentiles, rounded
from telepresence.measure.offline.video_tracking import write_ground_truth_folder
from telepresence.runtime.frames import CameraFrame, GroundTruth
from tests.support.small_person import CPU, SMALL, neutral_shape, open_head, paint, performance, photograph

SIZE, COUNT = 32, 4
ASKED = {
    *("frame_ms", "frame_while_training_ms", "step_ms", "field_inference_gpts", "field_training_gpts"),
    *("train_msamples_per_s", "nearest_triangle_gqps", "training_share", "first_frame_s", "host_frame_ms"),
    *("memory_gb", "device", "commit"),
}

BLOCKED = """
import sys
for name in ("av", "aiortc", "aiohttp", "mediapipe", "cv2", "zmq", "pygame", "platformdirs", "prometheus_client"):
    sys.modules[name] = None
import torch
from telepresence.cli import run_command
torch.set_num_threads(1)
sys.exit(run_command(["bench", *sys.argv[1:]]))
"""


def _frames() -> Iterator[CameraFrame]:
    head = open_head()
    for seen in photograph(head, performance(head, COUNT), SIZE, paint(head)):
        yield CameraFrame(
            seen.frame_id, seen.frame_id * 40_000_000, seen.rgb, GroundTruth(seen.state, seen.alpha, seen.camera)
        )


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An untrained avatar and its tracked folder."""
    place, head = tmp_path_factory.mktemp("person"), open_head()
    avatar, tracked = place / "avatar", place / "tracked"
    write_ground_truth_folder(
        _frames(), tracked, head=head, shape=neutral_shape(head), fps=25.0, size=SIZE, source="test"
    )
    camera = photograph(head, performance(head, 1), SIZE, paint(head))[0].camera
    Avatar.create(head, neutral_shape(head), camera, SMALL, CPU).save(avatar)
    return avatar, tracked


def _run(person: tuple[Path, Path], answer: Path, *arguments: str) -> dict[str, Any]:
    small = ("--size", str(SIZE), "--frames", "3", "--seconds", "0.2", "--device", "cpu", "--json", str(answer))
    assert run_command(["bench", *map(str, person), *small, *arguments]) == 0
    figures: dict[str, Any] = json.loads(answer.read_text())
    return figures


def test_the_figures_have_the_required_keys() -> None:
    assert set(KEYS) == ASKED


def test_every_figure_without_camera_codec_or_network(person: tuple[Path, Path], tmp_path: Path) -> None:
    answer = tmp_path / "bench.json"
    parts = [f"--only={name}" for name in PARTS if name != "host"]
    small = ["--size=32", "--frames=3", "--seconds=0.2", "--device=cpu", "--backend=torch", f"--json={answer}"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, person), *small, *parts],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TELEPRESENCE_COMMIT": "0123abc"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(answer.read_text())
    assert set(KEYS) <= figures.keys()
    for name in ("frame_ms", "frame_while_training_ms", "step_ms"):
        assert 0.0 < figures[name]["median"] <= figures[name]["p95"] <= figures[name]["p99"]
    positive = KEYS[3:8]
    assert all(figures[name] > 0.0 for name in positive), {name: figures[name] for name in positive}
    assert figures["first_frame_s"]["warm"] > figures["start"]["warm"]["avatar"] > 0.0
    assert figures["first_frame_s"]["cold"] is None
    assert figures["memory_gb"] > 0.05
    assert figures["device"]
    assert figures["commit"]
    assert figures["host_frame_ms"] is None
    assert all(figures[name] is not None or figures["notes"][name] for name in KEYS)
    assert (figures["backend"], figures["size"], figures["frames"]) == ("torch", 32, 3)
    assert figures["scene"]["samples_a_ray"] > 1.0
    assert sum(figures["torch_stages_ms"].values()) > 0.0
    assert "frame, ms" in done.stdout


def test_kernels_of_the_host(person: tuple[Path, Path], tmp_path: Path) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    parts = [f"--only={name}" for name in ("frame", "train", "stages", "field", "nearest", "torch")]
    figures = _run(person, tmp_path / "bench.json", "--backend=host", *parts)
    assert figures["backend"] == "host"
    assert {"pose", "fused_render", "picture"} <= figures["stages_ms"].keys()
    assert {"march", "field", "adam"} <= figures["step_stages_ms"].keys()
    assert figures["counters"]["pictures"] >= figures["frames"]
    assert figures["field_gpts"].keys() >= {"torch", "native"}
    assert figures["nearest_gqps"]["native"] > 0.0
    assert figures["torch"].keys() == {"frame_ms", "step_ms", "frame_ratio", "step_ratio"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent", "{tracked}"], ["absent"]),
        (["{avatar}", "absent"], ["absent"]),
        (["{avatar}", "{tracked}", "--size", "33"], ["--size", "even"]),
        (["{avatar}", "{tracked}", "--backend", "abacus"], ["abacus", "torch"]),
        (["{avatar}", "{tracked}", "--backend", "cuda"], ["cuda"]),
        (["{avatar}", "{tracked}", "--only", "lunch"], ["lunch", "frame"]),
        (["{avatar}", "{tracked}", "--frames", "0"], ["--frames"]),
        (["{avatar}", "{tracked}", "--seconds", "soon"], ["--seconds"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_that_the_user_can_fix_is_one_line(
    arguments: list[str], words: list[str], person: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    avatar, tracked = person
    given = [text.format(avatar=avatar, tracked=tracked) for text in arguments]
    assert run_command(["bench", *given, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error
    assert all(word in error.splitlines()[-1] for word in words), error


def test_a_take_without_a_face_is_refused(
    person: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    avatar, tracked = person
    empty = shutil.copytree(tracked, tmp_path / "empty")
    with np.load(empty / "take.npz") as stored:
        arrays = dict(stored)
    np.savez(empty / "take.npz", **{**arrays, "valid": np.zeros(COUNT, bool)})
    assert run_command(["bench", str(avatar), str(empty), "--device", "cpu"]) == 2
    assert "0 frames with a face" in capsys.readouterr().err


def test_percentiles_and_rounding() -> None:
    assert percentiles([1.0, 2.0, 3.0]) == pytest.approx({"median": 2.0, "p95": 2.9, "p99": 2.98})
    assert rounded({"a": [1.23456, float("nan")], "b": "text", "n": 3}) == {"a": [1.235, None], "b": "text", "n": 3}


def test_a_take_is_played_forwards_and_backwards() -> None:
    assert list(cycled("abc", 7)) == list("abcbabc")


def test_i420_of_plain_colours() -> None:
    """White, black and the three primaries of BT.601 in studio range."""
    colours = {(255, 255, 255): (235, 128, 128), (0, 0, 0): (16, 128, 128), (255, 0, 0): (81, 90, 240)}
    for rgb, (luma, blue, red) in colours.items():
        planes = i420(np.full((4, 6, 3), rgb, np.uint8))
        assert planes.shape == (6, 6)
        assert set(planes[:4].ravel()) == {luma}
        assert set(planes.ravel()[24:30]) == {blue}
        assert set(planes.ravel()[30:]) == {red}


def test_a_benchmark_leaves_the_avatar_unchanged(person: tuple[Path, Path]) -> None:
    from insta_runtime.learn.torch_trainer import TorchTrainer
    from telepresence.measure.bench.benchmark_avatar import fill_replay, open_benchmark_avatar

    subject = open_benchmark_avatar(*person, SIZE, "cpu")
    before = {name: tensor.clone() for name, tensor in subject.model.field.state_dict().items()}
    trainer = TorchTrainer(subject.untouched_model())
    assert fill_replay(trainer, subject, 5) == 5
    trainer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.model.field.state_dict().items())
    assert float(subject.model.occupancy.view_count.sum()) == 0.0

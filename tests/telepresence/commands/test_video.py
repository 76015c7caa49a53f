"""`telepresence fit` from a video, in one command, with the real tracker."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from telepresence.cli import run_command

SECOND = 30  # pictures
SMALL = (
    "--size=48",
    "--device=cpu",
    "--set=run.size=256",
    "--set=avatar.radiance.levels=2",
    "--set=avatar.radiance.log2_entries=10",
    "--set=avatar.learn.rays=256",
    "--set=avatar.learn.frames=1",
    "--set=avatar.occupancy.resolution=20",
)


@pytest.fixture
def video(shared: Path, tmp_path: Path) -> Path:
    """One second of a real face."""
    path = tmp_path / "face.mp4"
    with av.open(str(shared / "clips" / "d18.mp4")) as clip, av.open(str(path), "w") as cut:
        stream = None
        for _, frame in zip(range(SECOND), clip.decode(video=0), strict=False):
            if stream is None:
                stream = cut.add_stream("libx264", rate=30, width=frame.width, height=frame.height)
            cut.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")))
        assert stream is not None
        cut.mux(stream.encode())
    return path


def test_a_video_becomes_an_avatar_and_a_film_of_it(video: Path, models: Path, tmp_path: Path) -> None:
    figures, avatar, film = tmp_path / "fit.json", tmp_path / "avatar", tmp_path / "turn.mp4"
    fit = ["fit", str(video), "--out", str(avatar), "--models", str(models), "--seconds=1", f"--json={figures}", *SMALL]
    assert run_command(fit) == 0
    answer = json.loads(figures.read_text())
    assert answer["train_frames"] + answer["holdout_frames"] == SECOND
    assert answer["steps"] > 0
    assert run_command(["render", str(avatar), "--device=cpu", "--orbit=20", "--size=48", "--out", str(film)]) == 0
    with av.open(str(film)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 120
    assert pictures[0].shape == (48, 48, 3)
    assert abs(pictures[0].astype(int) - pictures[30].astype(int)).mean() > 0.5, "the camera moves"

"""Videos of rendered frames: names of files."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest

from insta_runtime.errors import UserError
from telepresence.measure.offline.rendering import _write_video, check_video


@pytest.mark.parametrize(
    "name",
    ["2024-05-01T12:30:00.mp4", "http:.mp4", "-x.mp4", "%d.mp4", "two\nlines.mkv", os.fsdecode(b"latin\xe9.mp4")],
)
def test_a_relative_name_is_that_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    frames = iter([np.full((48, 48, 3), 120, np.uint8)] * 12)
    _write_video(Path(name), frames, 20.0, 48)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    with (tmp_path / name).open("rb") as file, av.open(file) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12


@pytest.mark.parametrize(
    "name", ["12:30", "x.gif", "x.m3u8", "x.mpd", "x.yuv", "x.webm", "x.avi", "mp4", ".mp4", "x.mp4.part", "x%d.png"]
)
def test_a_name_without_the_ending_of_a_single_video_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"end it in \.mp4, \.mov, \.mkv$") as refused:
        check_video(tmp_path / name, 512)
    assert "\n" not in str(refused.value)


def test_an_odd_size_is_refused(tmp_path: Path) -> None:
    check_video(tmp_path / "X.MOV", 512)
    with pytest.raises(UserError, match="even size, not 511"):
        check_video(tmp_path / "x.mp4", 511)

"""Frame archive: frames are stored only on request, as tracked folders, and used for training again."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from insta_runtime.errors import UserError
from insta_runtime.tracked import TrackedFolder
from insta_runtime.types import Observation
from telepresence.learning import frame_archive as module
from telepresence.learning.frame_archive import FrameArchive, archive_folder
from tests.support.small_person import camera, flame_head, neutral_shape, open_head, paint, performance, photograph


@pytest.fixture(scope="module")
def pictures() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), 6), 32, paint(open_head()))


def archive(path: Path) -> FrameArchive:
    return FrameArchive(archive_folder(path), open_head(), neutral_shape(open_head()))


def test_added_frames_are_a_tracked_folder_and_can_be_read_again(pictures: list[Observation], tmp_path: Path) -> None:
    first = archive(tmp_path)
    for i in (0, 3):
        for picture in pictures[i : i + 3]:
            first.add(picture)
        first.write()
        folder = TrackedFolder.open(tmp_path / "frames" / "0000")
        assert len(folder) == len(folder.frames) == i + 3, "complete after every write"
    moved = replace(camera(32), cx=3.0)
    first.add(replace(pictures[0], camera=moved))
    first.write()
    second = archive(tmp_path)
    back = list(second.stored_observations())
    assert len(back) == 7
    assert [found.camera for found in back] == 6 * [camera(32)] + [moved]
    for found, picture in zip(back, pictures, strict=False):
        np.testing.assert_array_equal(found.alpha, picture.alpha)
        assert np.abs(found.rgb.astype(int) - picture.rgb).mean() < 12.0
        np.testing.assert_allclose(found.state.rotation, picture.state.rotation)
    third = FrameArchive(archive_folder(tmp_path), open_head(), neutral_shape(open_head()), keep=False)
    third.add(pictures[0])
    third.write()
    assert len(list(third.stored_observations())) == 7, "no new frame is stored, and the earlier ones are still read"
    second.add(pictures[0])
    second.write()
    assert sorted(folder.name for folder in (tmp_path / "frames").iterdir()) == ["0000", "0001", "0002"]


def test_frames_of_another_subject_are_not_read(
    pictures: list[Observation], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = archive(tmp_path)
    kept.add(pictures[0])
    kept.write()
    other = neutral_shape(open_head())
    other[0] = 1.0
    with caplog.at_level(logging.WARNING):
        assert not list(FrameArchive(archive_folder(tmp_path), open_head(), other).stored_observations())
        assert not list(
            FrameArchive(archive_folder(tmp_path), flame_head(), neutral_shape(flame_head())).stored_observations()
        )
    assert len(caplog.records) == 2
    (tmp_path / "frames" / "0000" / "take.npz").write_bytes(b"damaged")
    caplog.clear()
    assert not list(archive(tmp_path).stored_observations())
    assert len(caplog.records) == 1


def test_metadata_of_an_interrupted_write_is_repaired(pictures: list[Observation], tmp_path: Path) -> None:
    kept = archive(tmp_path)
    for picture in pictures:
        kept.add(picture)
    kept.write()
    meta = tmp_path / "frames" / "0000" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"frames": 2}))
    assert len(list(archive(tmp_path).stored_observations())) == 6


def test_the_number_of_archived_frames_is_limited(
    pictures: list[Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP_ALL", 4)
    monkeypatch.setattr(module, "MAX_FRAMES", 24)
    tiny = replace(pictures[0], rgb=np.zeros((2, 2, 3), np.uint8), alpha=np.zeros((2, 2), np.uint8), camera=camera(2))
    for _ in range(4):
        kept = archive(tmp_path)
        for i in range(200):
            kept.add(replace(tiny, frame_id=i))
        kept.write()
        folders = sorted(folder.name for folder in (tmp_path / "frames").iterdir())
        count = len(list(archive(tmp_path).stored_observations()))
        assert count <= 24 + 22
    assert folders[-1] == "0003"
    assert "0000" not in folders, "the frames of the first call were deleted"
    assert len(TrackedFolder.open(tmp_path / "frames" / "0003")) < 30


def test_a_write_error_is_one_line(pictures: list[Observation], tmp_path: Path) -> None:
    (tmp_path / "frames").write_text("something else")
    kept = archive(tmp_path)
    kept.add(pictures[0])
    with pytest.raises(UserError, match="cannot be stored") as caught:
        kept.write()
    assert "\n" not in str(caught.value)

"""Pictures are kept only where that was asked for, as tracked folders, and learned from again."""

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


def test_what_was_offered_is_a_tracked_folder_and_comes_back(pictures: list[Observation], tmp_path: Path) -> None:
    first = archive(tmp_path)
    for i in (0, 3):
        for picture in pictures[i : i + 3]:
            first.offer(picture)
        first.write()
        folder = TrackedFolder.open(tmp_path / "frames" / "0000")
        assert len(folder) == len(folder.frames) == i + 3, "whole after every save"
    moved = replace(camera(32), cx=3.0)
    first.offer(replace(pictures[0], camera=moved))
    first.write()
    second = archive(tmp_path)
    back = list(second.stored())
    assert len(back) == 7
    assert [found.camera for found in back] == 6 * [camera(32)] + [moved]
    for found, picture in zip(back, pictures, strict=False):
        np.testing.assert_array_equal(found.alpha, picture.alpha)
        assert np.abs(found.rgb.astype(int) - picture.rgb).mean() < 12.0
        np.testing.assert_allclose(found.state.rotation, picture.state.rotation)
    third = FrameArchive(archive_folder(tmp_path), open_head(), neutral_shape(open_head()), keep=False)
    third.offer(pictures[0])
    third.write()
    assert len(list(third.stored())) == 7, "nothing more is kept, and what was is still learned from"
    second.offer(pictures[0])
    second.write()
    assert sorted(page.name for page in (tmp_path / "frames").iterdir()) == ["0000", "0001", "0002"]


def test_pictures_of_somebody_else_are_not_learned_from(
    pictures: list[Observation], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = archive(tmp_path)
    kept.add(pictures[0])
    kept.write()
    other = neutral_shape(open_head())
    other[0] = 1.0
    with caplog.at_level(logging.WARNING):
        assert not list(FrameArchive(archive_folder(tmp_path), open_head(), other).stored())
        assert not list(FrameArchive(archive_folder(tmp_path), flame_head(), neutral_shape(flame_head())).stored())
    assert len(caplog.records) == 2
    (tmp_path / "frames" / "0000" / "take.npz").write_bytes(b"damaged")
    caplog.clear()
    assert not list(archive(tmp_path).stored())
    assert len(caplog.records) == 1


def test_a_page_that_was_cut_short_is_mended(pictures: list[Observation], tmp_path: Path) -> None:
    kept = archive(tmp_path)
    for picture in pictures:
        kept.add(picture)
    kept.write()
    meta = tmp_path / "frames" / "0000" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"frames": 2}))
    assert len(list(archive(tmp_path).stored())) == 6


def test_it_is_bounded(pictures: list[Observation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL", 4)
    monkeypatch.setattr(module, "MOST", 24)
    tiny = replace(pictures[0], rgb=np.zeros((2, 2, 3), np.uint8), alpha=np.zeros((2, 2), np.uint8), camera=camera(2))
    for _ in range(4):
        kept = archive(tmp_path)
        for i in range(200):
            kept.add(replace(tiny, frame_id=i))
        kept.write()
        pages = sorted(page.name for page in (tmp_path / "frames").iterdir())
        count = len(list(archive(tmp_path).stored()))
        assert count <= 24 + 22
    assert pages[-1] == "0003"
    assert "0000" not in pages, "the first call's went"
    assert len(TrackedFolder.open(tmp_path / "frames" / "0003")) < 30


def test_what_cannot_be_written_is_one_line(pictures: list[Observation], tmp_path: Path) -> None:
    (tmp_path / "frames").write_text("something else")
    kept = archive(tmp_path)
    kept.add(pictures[0])
    with pytest.raises(UserError, match="cannot be kept") as caught:
        kept.write()
    assert "\n" not in str(caught.value)

"""Saving: avatar and training state match, and a full disk or damage costs the last save at most."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from insta_runtime import avatar_file as files
from insta_runtime.avatar import Avatar
from insta_runtime.errors import UserError
from insta_runtime.types import Observation
from telepresence.learning import saving, snapshot_gate
from telepresence.learning.frame_archive import FrameArchive
from telepresence.learning.learner import Learner
from telepresence.learning.saving import load_training_state, training_file
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, paint, performance, photograph

CONFIG = replace(SMALL, learn=replace(SMALL.learn, rays=256, size=32))
NAMES = {
    "avatar.safetensors",
    "avatar.previous.safetensors",
    "avatar.training.safetensors",
    "avatar.training.previous.safetensors",
}


@pytest.fixture(scope="module")
def pictures() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), 4), 32, paint(open_head()))


@pytest.fixture
def begin(pictures: list[Observation], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Learner]:
    """Function that opens or creates the avatar at a path; every candidate is published at once."""
    monkeypatch.setattr(snapshot_gate, "EARLY_PUBLISH_S", 0.0)
    monkeypatch.setattr(snapshot_gate, "FIRST_STEPS", 1)
    monkeypatch.setattr(saving, "SAVE_TIME_SHARE", 1.0)  # a slow disk would delay the next save

    def start(path: Path, autosave_s: float = 3600.0) -> Learner:
        if files.previous(path / "avatar.safetensors").exists() or (path / "avatar.safetensors").exists():
            avatar = Avatar.load(path, open_head(), "cpu")
        else:
            avatar = Avatar.create(open_head(), neutral_shape(open_head()), camera(32), CONFIG, "cpu")
        learner = Learner(avatar, path, freeze=False, backend="host", autosave_s=autosave_s)
        for picture in pictures:
            learner.trainer.add(picture)
        return learner

    return start


def work(learner: Learner, steps: int) -> None:
    end = learner.trainer.steps + steps
    while learner.trainer.steps < end:
        learner.run_once()
        learner.autosave(time.monotonic())


def test_training_continues_where_it_was_saved(begin: Callable[..., Learner], tmp_path: Path) -> None:
    first = begin(tmp_path)
    work(first, 10)
    assert first.save()
    assert not first.save(), "nothing was learned since"
    last = first.trainer.state()
    second = begin(tmp_path)
    state = second.trainer.state()
    assert (state.steps, state.updates) == (10, 10)
    for part in ("weights", "first", "second", "averaged"):
        for name, tensor in getattr(last, part).items():
            assert torch.equal(getattr(state, part)[name], tensor), (part, name)
    assert not second.save()
    work(second, 3)
    assert second.save()
    assert {path.name for path in tmp_path.iterdir()} == NAMES
    loaded = Avatar.load(tmp_path, open_head(), "cpu")
    assert loaded.steps == 13
    assert loaded.seconds > first.avatar.seconds > 0.0


def test_the_saved_avatar_is_the_published_one_while_training_continues(
    begin: Callable[..., Learner], tmp_path: Path
) -> None:
    learner = begin(tmp_path, autosave_s=0.0)
    end = time.monotonic() + 120.0
    saved: set[int] = set()
    while len(saved) < 3 and time.monotonic() < end:
        good = learner.snapshot_gate.published_state
        learner.run_once()
        learner.autosave(time.monotonic())
        if learner.saved_steps not in saved | {0}:
            saved.add(learner.saved_steps)
            learner._writer.finish()
            found = Avatar.load(tmp_path, open_head(), "cpu")
            training = load_training_state(tmp_path, found)
            assert training is not None
            assert (found.steps, training.steps) == (learner.saved_steps, learner.saved_steps)
            if good.steps == found.steps:
                assert torch.equal(found.model.field.grid.table, good.shown["grid.table"])
                assert torch.equal(training.weights["grid.table"], good.weights["grid.table"])
    assert len(saved) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "absent", "of another avatar"])
def test_a_training_state_that_does_not_fit_is_ignored_with_one_line(
    begin: Callable[..., Learner], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    learner = begin(tmp_path)
    work(learner, 4)
    learner.save()
    file = training_file(tmp_path)
    data = bytearray(file.read_bytes())
    if damage == "absent":
        file.unlink()
    elif damage == "of another avatar":
        learner.avatar.seconds += 1.0
        learner.avatar.save(tmp_path)
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data) if damage == "flipped" else bytes(data[:-100]))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = begin(tmp_path)
    assert len(caplog.records) == (damage != "absent")
    assert (again.trainer.steps, again.trainer.state().updates) == (4, 0)
    work(again, 2)
    assert again.save()


def test_if_the_newest_file_is_damaged_the_previous_one_continues_with_its_training_state(
    begin: Callable[..., Learner], tmp_path: Path
) -> None:
    learner = begin(tmp_path)
    for _ in range(2):
        work(learner, 4)
        learner.save()
    (tmp_path / "avatar.safetensors").write_bytes(b"damaged")
    before = files.previous(tmp_path / "avatar.safetensors").read_bytes()
    again = begin(tmp_path)
    assert (again.trainer.steps, again.trainer.state().updates) == (4, 4)
    work(again, 2)
    again.save()
    assert files.previous(tmp_path / "avatar.safetensors").read_bytes() == before
    assert Avatar.load(tmp_path, open_head(), "cpu").steps == 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_only_the_last_save(begin: Callable[..., Learner], small_disk: Path) -> None:
    path = small_disk / "me"
    learner = begin(path)
    for _ in range(2):
        work(learner, 2)
        learner.save()
    newest, sizes = learner.trainer.steps, [file.stat().st_size for file in path.iterdir()]
    filler = small_disk / "filler"
    failed = 0
    for room in (0, max(sizes) // 3, max(sizes) + 4096, sum(sizes) // 2 - 8192):
        filler.unlink(missing_ok=True)
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        filler.write_bytes(bytes(max(0, free - room)))
        work(learner, 1)
        with suppress(UserError):
            learner.save()
        if learner.save_error is None:
            newest = learner.trainer.steps
        else:
            assert "No space left" in learner.save_error
            failed += 1
        found = Avatar.load(path, open_head(), "cpu")
        assert found.steps == newest
        assert {file.name for file in path.iterdir()} <= NAMES
    assert failed >= 2
    filler.unlink()
    work(learner, 1)
    assert learner.save()
    assert learner.save_error is None
    found = Avatar.load(path, open_head(), "cpu")
    assert found.steps == learner.trainer.steps
    assert load_training_state(path, found) is not None


def test_a_failed_autosave_is_reported_and_repeated_later(begin: Callable[..., Learner], tmp_path: Path) -> None:
    (tmp_path / "me").write_text("something else is here")
    learner = begin(tmp_path / "me" / "avatar", autosave_s=0.0)
    end = time.monotonic() + 120.0
    while learner.save_error is None and time.monotonic() < end:
        learner.run_once()
        learner.autosave(time.monotonic())
    assert "cannot be written" in str(learner.save_error)
    thread = learner._writer._thread
    work(learner, 3)
    assert learner._writer._thread is thread, "the next attempt comes later"


def test_archived_frames_are_used_for_training_again(
    begin: Callable[..., Learner], pictures: list[Observation], tmp_path: Path
) -> None:
    learner = begin(tmp_path)
    learner._archive = learner._writer.archive = FrameArchive(
        tmp_path / "frames", open_head(), neutral_shape(open_head())
    )
    for second, picture in enumerate(pictures):
        learner._archive.add(replace(picture, frame_id=second))
    work(learner, 2)
    learner.save()
    avatar = Avatar.load(tmp_path, open_head(), "cpu")
    archive = FrameArchive(tmp_path / "frames", open_head(), avatar.model.shape, keep=False)
    again = Learner(avatar, tmp_path, freeze=False, backend="host", archive=archive)
    again.trainer.add(pictures[0])
    end = time.monotonic() + 120.0
    while len(again.trainer.replay) < 1 + len(pictures) and time.monotonic() < end:
        again.run_once()
    assert len(again.trainer.replay) == 1 + len(pictures)

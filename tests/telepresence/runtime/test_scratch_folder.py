"""Temporary folders: removed when they are left, and after a kill by the next start; nothing else is ever removed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from telepresence.runtime import scratch_folder
from telepresence.runtime.scratch_folder import (
    MARKER,
    SUFFIX,
    ScratchFolder,
    abandoned_beside,
    abandoned_folders,
    remove_abandoned,
    remove_all,
    unreachable_folders,
)

WRITER = """
import sys
from pathlib import Path
from telepresence.runtime.scratch_folder import ScratchFolder
scratch = ScratchFolder(Path(sys.argv[1]))
(scratch.path / "new" / "frames").mkdir(parents=True)
(scratch.path / "new" / "frames" / "000000.jpg").write_bytes(b"a face")
print(scratch.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def start_writer(tmp_path: Path):
    """Start a process that writes into a temporary folder of ``target``; returns it and the folder."""
    running: list[subprocess.Popen[str]] = []

    def start(target: Path = tmp_path / "tracked") -> tuple[subprocess.Popen[str], Path]:
        command = [sys.executable, "-c", WRITER, str(target)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in running:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def notes() -> list[Path]:
    folder = scratch_folder.notes_folder()
    assert folder is not None
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_leaving_the_block_removes_everything(tmp_path: Path) -> None:
    with ScratchFolder(tmp_path / "video.mp4") as scratch:
        assert scratch.path.stat().st_mode & 0o777 == 0o700
        assert scratch.path.parent == tmp_path
        (scratch.path / "a").mkdir()
        (scratch.path / "a" / "picture.jpg").write_bytes(b"a face")
        assert len(notes()) == 1
        assert remove_abandoned() == []
        scratch.remove()
        assert not scratch.path.exists()
    assert notes() == []


@pytest.mark.parametrize(
    "name", ["tracked", "日本語" * 30, "e\u0301" * 60, "with space\nand line", "x" * 250, ".hidden"]
)
def test_names_in_any_script(tmp_path: Path, name: str) -> None:
    with ScratchFolder(tmp_path / name) as scratch:
        assert scratch.path.is_dir()
        assert scratch.path.name.startswith(".")


def test_after_a_kill_the_folder_is_found_and_removed(
    start_writer: Callable[..., tuple[subprocess.Popen[str], Path]],
) -> None:
    process, path = start_writer()
    assert abandoned_folders() == [], "its process is running"
    assert remove_abandoned() == []
    kill(process)
    assert [folder.path for folder in abandoned_folders()] == [path]
    assert [folder.path for folder in remove_abandoned()] == [path]
    assert not path.exists()
    assert notes() == []
    assert remove_abandoned() == []


def test_a_running_process_keeps_its_folder_beside_a_killed_one(
    start_writer: Callable[..., tuple[subprocess.Popen[str], Path]],
) -> None:
    (killed, left), (_, used) = start_writer(), start_writer()
    kill(killed)
    assert [folder.path for folder in remove_abandoned()] == [left]
    assert (used / "new" / "frames" / "000000.jpg").exists()


def test_without_its_note_it_is_found_beside_its_target(
    start_writer: Callable[..., tuple[subprocess.Popen[str], Path]], tmp_path: Path
) -> None:
    process, path = start_writer(tmp_path / "clip")
    assert abandoned_beside(tmp_path / "clip") == []
    kill(process)
    notes()[0].unlink()
    assert remove_abandoned() == []
    assert abandoned_beside(tmp_path / "other") == []
    (found,) = abandoned_beside(tmp_path / "clip")
    assert found.remove()
    assert not path.exists()


def test_a_read_only_state_folder_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_text("a file in place of the folder")
    with ScratchFolder(tmp_path / "clip") as scratch:
        assert scratch.path.is_dir()
    assert not scratch.path.exists()
    assert remove_abandoned() == []


def replace_by_link(path: Path, home: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(home)


def link_inside(path: Path, home: Path) -> None:
    (path / "new" / "link").symlink_to(home)
    (path / "link").symlink_to(home)


def note_another_folder(path: Path, home: Path) -> None:
    facts = json.loads(notes()[0].read_text())
    notes()[0].write_text(json.dumps({**facts, "folder": str(home)}))


def note_a_folder_of_the_right_name(path: Path, home: Path) -> None:
    named = home.with_name(f".home{SUFFIX}")
    home.rename(named)
    home.symlink_to(named)
    note_another_folder(path, named)


def another_token(path: Path, _home: Path) -> None:
    facts = json.loads((path / MARKER).read_text())
    (path / MARKER).write_text(json.dumps({**facts, "token": "0" * 16}))


def another_host(path: Path, _home: Path) -> None:
    facts = json.loads(notes()[0].read_text())
    notes()[0].write_text(json.dumps({**facts, "host": "elsewhere"}))


def no_marker(path: Path, _home: Path) -> None:
    (path / MARKER).unlink()


def marker_is_a_link(path: Path, home: Path) -> None:
    (path / MARKER).rename(home / "marker")
    (path / MARKER).symlink_to(home / "marker")


def nonsense(_path: Path, _home: Path) -> None:
    for number, text in enumerate(["", "[]", "null", "[" * 9000, '{"token": 3}', "x" * 20_000]):
        notes()[0].with_name(f"{number}.json").write_text(text)
    os.mkfifo(notes()[0].with_name("fifo.json"))


@pytest.mark.parametrize(
    ("attack", "keeps"),
    [
        (replace_by_link, False),
        (link_inside, False),
        (note_another_folder, True),
        (note_a_folder_of_the_right_name, True),
        (another_token, True),
        (another_host, True),
        (no_marker, True),
        (marker_is_a_link, True),
        (nonsense, False),
    ],
)
def test_nothing_else_is_removed(
    start_writer: Callable[..., tuple[subprocess.Popen[str], Path]],
    tmp_path: Path,
    attack: Callable[[Path, Path], None],
    keeps: bool,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    process, path = start_writer()
    kill(process)
    attack(path, home)
    remove_abandoned()
    assert (home / "letter.txt").read_text() == "dear"
    assert (path / "new" / "frames" / "000000.jpg").exists() == keeps


def test_a_disk_out_of_reach_keeps_its_note(
    start_writer: Callable[..., tuple[subprocess.Popen[str], Path]], tmp_path: Path
) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    process, path = start_writer(stick / "clip")
    kill(process)
    stick.rename(tmp_path / "unplugged")
    assert remove_abandoned() == []
    assert len(notes()) == 1
    assert unreachable_folders() == [path]
    (tmp_path / "unplugged").rename(stick)
    assert unreachable_folders() == []
    assert [folder.path for folder in remove_abandoned()] == [path]


def test_a_folder_that_was_moved_is_found_beside_its_moved_target(
    start_writer: Callable[..., tuple[subprocess.Popen[str], Path]], tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    process, path = start_writer(old / "clip")
    kill(process)
    old.rename(new)
    assert remove_abandoned() == []
    (found,) = abandoned_beside(new / "clip")
    assert found.path == new / path.name
    assert found.remove()
    assert list(new.iterdir()) == []
    assert notes() == []


def test_a_folder_of_another_host_name_is_reported_and_left_alone(
    start_writer: Callable[..., tuple[subprocess.Popen[str], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, path = start_writer()
    kill(process)
    monkeypatch.setattr(scratch_folder.platform, "node", lambda: "elsewhere")
    assert remove_abandoned() == []
    assert unreachable_folders() == [path]


def test_a_removal_that_was_killed_is_continued(
    start_writer: Callable[..., tuple[subprocess.Popen[str], Path]],
) -> None:
    process, path = start_writer()
    kill(process)
    shutil.rmtree(path / "new")
    (path / MARKER).unlink()
    remove_abandoned()
    assert not path.exists()
    assert notes() == []


def test_all_folders_of_this_process_are_removed_at_once(tmp_path: Path) -> None:
    scratches = [ScratchFolder(tmp_path / name) for name in ("a", "b")]
    (scratches[0].path / "picture.jpg").write_bytes(b"a face")
    remove_all()
    assert not any(scratch.path.exists() for scratch in scratches)
    for scratch in scratches:
        scratch.remove()
    assert notes() == []

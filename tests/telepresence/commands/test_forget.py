"""`telepresence forget`: deletes all files that this program wrote, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from insta_runtime import avatar_file as files
from insta_runtime.files import partial_path
from insta_runtime.head import load_head
from insta_runtime.types import Camera, HeadState, Observation
from telepresence.checkup.machine import unfinished_files
from telepresence.cli import run_command
from telepresence.commands.forget import default_avatars, what_belongs
from telepresence.learning.frame_archive import FrameArchive, archive_folder
from telepresence.learning.saving import training_file


def write_avatar(path: Path, frames: bool = True) -> None:
    """Write all files that a call may leave at ``path``."""
    file = path / "avatar.safetensors"
    for _ in range(2):
        files.write(file, {"version": 2}, {}, keep=True)
        files.write(training_file(path), {"version": 1}, {}, keep=True)
    partial_path(file).write_bytes(b"")
    (path / "fit.json").write_text("{}")
    if frames:
        head = load_head()
        archive = FrameArchive(archive_folder(path), head, np.zeros(len(head.shape_dirs), np.float32))
        picture = np.zeros((4, 4, 3), np.uint8)
        state = HeadState(np.zeros(len(head.expression_names), np.float32))
        archive.add(Observation(0, picture, picture[..., 0], Camera(5.0, 5.0, 2.0, 2.0, 4, 4), state))
        archive.write()


def test_all_files_of_an_avatar_are_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    me = tmp_path / "me"
    write_avatar(me)
    assert run_command(["forget", str(me), "--yes"]) == 0
    assert not me.exists()
    printed = capsys.readouterr().out
    for name in ("avatar.safetensors", "avatar.previous.safetensors", "avatar.training.safetensors", "frames"):
        assert str(me / name) in printed
    assert "1 frames" in printed
    assert run_command(["forget", str(me), "--yes"]) == 2


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    me = tmp_path / "me"
    write_avatar(me)
    (me / "diary.txt").write_text("mine")
    assert run_command(["forget", str(me), "--yes"]) == 0
    assert [path.name for path in me.iterdir()] == ["diary.txt"]


def test_without_confirmation_nothing_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = tmp_path / "me"
    write_avatar(me)
    before = sorted(me.rglob("*"))
    for answer in (False, True):
        monkeypatch.setattr("typer.confirm", lambda _question, answer=answer: answer)
        assert sorted(me.rglob("*")) == before
        assert run_command(["forget", str(me)]) == 0
    assert not me.exists()


@pytest.mark.parametrize("foreign", ["frames/holiday.jpg", "frames/0000/notes.txt", "frames/0000/frames/a.gif"])
def test_foreign_files_in_the_archive_are_refused(
    tmp_path: Path, foreign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    me = tmp_path / "me"
    write_avatar(me)
    (me / foreign).write_text("mine")
    before = sorted(me.rglob("*"))
    assert run_command(["forget", str(me), "--yes"]) == 2
    assert "nothing was deleted" in capsys.readouterr().err
    assert sorted(me.rglob("*")) == before


def leave(target: Path) -> Path:
    """What a killed command leaves of a result at ``target``: a temporary folder without a process."""
    program = (
        "import os, sys; from pathlib import Path; from telepresence.runtime.scratch_folder import ScratchFolder\n"
        "scratch = ScratchFolder(Path(sys.argv[1])); (scratch.path / '000000.jpg').write_bytes(b'a face')\n"
        "print(scratch.path, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip())


def test_what_killed_commands_left_is_listed_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    write_avatar(tmp_path / "me")
    beside_avatar, alone, other = leave(tmp_path / "me"), leave(tmp_path / "tracked"), leave(tmp_path / "other")
    (finding,) = unfinished_files()
    assert finding.ok is False
    assert str(alone) in finding.found
    assert run_command(["forget", str(tmp_path / "tracked"), "--yes"]) == 0
    assert str(alone) in capsys.readouterr().out
    assert not alone.exists()
    assert run_command(["forget", str(tmp_path / "tracked"), "--yes"]) == 2
    assert run_command(["forget", str(tmp_path / "me"), "--yes"]) == 0
    assert not beside_avatar.exists()
    assert not (tmp_path / "me").exists()
    assert run_command(["forget", "--all", "--yes"]) == 0
    assert not other.exists()
    (finding,) = unfinished_files()
    assert finding.ok


def test_what_a_killed_call_left_in_the_archive_is_deleted(tmp_path: Path) -> None:
    me = tmp_path / "me"
    write_avatar(me)
    partial_path(me / "frames" / "0000" / "take.npz").write_bytes(b"half")
    (me / "frames" / "0000" / "frames" / "000001.jpg").write_bytes(b"half")
    assert run_command(["forget", str(me), "--yes"]) == 0
    assert not me.exists()


def test_a_path_without_an_avatar_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "avatar.safetensors").write_text("it only has the name")
    link = tmp_path / "link"
    link.mkdir()
    write_avatar(tmp_path / "me", frames=False)
    (link / "avatar.safetensors").symlink_to(tmp_path / "me" / "avatar.safetensors")
    for arguments in (["notes"], ["nowhere"], ["other"], ["link"]):
        assert run_command(["forget", str(tmp_path / arguments[0]), "--yes"]) == 2
        line = capsys.readouterr().err
        assert "nothing was deleted" in line
        assert line.count("\n") == 1
    assert run_command(["forget"]) == 2
    assert run_command(["forget", str(tmp_path / "me"), "--all"]) == 2
    assert (tmp_path / "me" / "avatar.safetensors").exists()


def test_all_avatars_of_the_data_folder_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert run_command(["forget", "--all", "--yes"]) == 0
    assert "no avatar to delete" in capsys.readouterr().out
    folder = tmp_path / "telepresence" / "avatars"
    for name in ("a", "b"):
        write_avatar(folder / name, frames=name == "a")
    (folder / "c").mkdir()
    assert default_avatars() == [folder / "a", folder / "b"]
    assert len(what_belongs(folder / "a")) == 7
    assert run_command(["forget", "--all", "--yes"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["c"]

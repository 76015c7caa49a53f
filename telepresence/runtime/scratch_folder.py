"""Temporary folders that do not outlive the program: removed when they are left, or by the next start after a kill.

Each folder holds a marker file with a random token, locked (flock) by the process that uses it, and is noted in the
user's state folder.  `remove_abandoned` removes the noted folders whose process has ended: only those of this machine
and this user that carry the marker with the noted token.  Symbolic links are not followed.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MARKER: Final = ".telepresence-temporary"
"""Name of the marker file in each temporary folder."""
SUFFIX: Final = ".telepresence-part"
"""End of the name of each temporary folder, which begins with a dot."""
MAX_NOTE_BYTES: Final = 10_000
"""Maximum size of a note or marker in bytes; larger files were not written by this program."""
NAME_BYTES: Final = 100
"""Maximum number of bytes of the result's name that the name of its temporary folder repeats."""
REMOVALS: Final = 5
"""Attempts to remove the folder of a process whose threads may still write to it."""

_in_use: dict[Path, int] = {}  # folders of this process and the descriptors of their locked markers


class ScratchFolder:
    """Temporary folder beside a result, for files that are moved into place when they are complete.

    A context manager; leaving it removes the folder with everything in it.

    Attributes:
        path: the folder, with permissions for its owner only.
    """

    def __init__(self, target: Path) -> None:
        """Create a folder beside ``target``, the later place of the result.  OSError if that is not possible."""
        target = _place(target)
        token = secrets.token_hex(8)
        name = target.name.encode("utf-8", "replace")[:NAME_BYTES].decode("utf-8", "ignore")
        self.path = target.with_name(f".{name}.{token[:8]}{SUFFIX}")
        self._note: Path | None = None
        self.path.mkdir(mode=0o700)
        try:
            place = {"folder": str(self.path), "target": str(target)}
            device = self.path.parent.stat().st_dev
            text = json.dumps({"token": token, **place, "host": platform.node(), "device": device})
            marker = os.open(self.path / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            _in_use[self.path] = marker
            with suppress(OSError):  # a file system without locks: the folder is left alone after a kill
                _lock(marker)
            os.write(marker, text.encode())
            self._note = _write_note(token, text)
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> ScratchFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder; may be called twice."""
        _remove_own(self.path)
        if self._note is not None and not self.path.exists():
            with suppress(OSError):
                self._note.unlink()


@contextmanager
def system_scratch_folder() -> Iterator[Path]:
    """Path of a temporary folder in the system's folder for temporary files."""
    import tempfile

    with ScratchFolder(Path(tempfile.gettempdir()) / "telepresence") as scratch:
        yield scratch.path


def remove_all() -> None:
    """Remove all temporary folders of this process, because it ends at once; its threads may still write to them."""
    for path in list(_in_use):
        _remove_own(path)


@dataclass(frozen=True)
class AbandonedFolder:
    """Temporary folder that a killed process has left behind.

    Attributes:
        path: the folder.
        target: the result for which it was made.
        note: its note in the state folder; None if it was found beside ``target`` and nowhere noted.
    """

    path: Path
    target: Path
    note: Path | None

    def remove(self) -> bool:
        """Remove the folder and its note; False if it is in use after all or cannot be removed."""
        marker = _locked_marker(self.path)
        if marker is None or not _remove_contents(self.path):
            return False
        os.close(marker)
        _remove_marker(self.path)
        if self.note is not None:
            with suppress(OSError):
                self.note.unlink()
        return True


def remove_abandoned() -> list[AbandonedFolder]:
    """Remove every noted folder whose process has ended; returns the removed ones.  Never raises for a bad note."""
    return [folder for folder in abandoned_folders(tidy=True) if folder.remove()]


def abandoned_folders(*, tidy: bool = False) -> list[AbandonedFolder]:
    """Noted folders of killed processes of this user; ``tidy`` deletes notes of folders that are gone."""
    found = []
    with suppress(OSError):
        for note, facts in _notes():
            if facts["host"] != platform.node():
                continue
            path = Path(facts["folder"])
            if _is_abandoned(path, facts["token"]):
                found.append(AbandonedFolder(path, Path(facts["target"]), note))
            elif tidy:
                if path.name.endswith(SUFFIX) and not os.path.lexists(path / MARKER):
                    with suppress(OSError):
                        path.rmdir()  # only succeeds if it is empty
                if _is_gone(path, facts["device"]):
                    note.unlink()
    return found


def unreachable_folders() -> list[Path]:
    """Noted folders that cannot be examined: moved, on a disk that is not attached, or of another host name."""
    noted = [(Path(facts["folder"]), facts["host"]) for _, facts in _notes()]
    return [path for path, host in noted if host != platform.node() or not os.path.lexists(path)]


def abandoned_beside(target: Path) -> list[AbandonedFolder]:
    """Folders of killed processes beside ``target`` that were to become it, noted or not, also if both were moved."""
    target = _place(target)
    found = []
    with suppress(OSError):
        for path in sorted(target.parent.iterdir()):
            facts = _read(path / MARKER) if path.name.endswith(SUFFIX) else None
            if facts is not None and Path(facts["target"]).name == target.name and _is_abandoned(path, facts["token"]):
                folder = notes_folder()
                note = folder / f"{facts['token']}.json" if folder is not None else None
                found.append(AbandonedFolder(path, target, note))
    return found


def notes_folder() -> Path | None:
    """Folder of the notes on temporary folders, in the user's state folder; None without the package platformdirs."""
    try:
        from platformdirs import user_state_path
    except ImportError:
        return None
    return Path(user_state_path("telepresence")) / "temporary"


def _notes() -> list[tuple[Path, dict[str, Any]]]:
    """All valid notes in the state folder, each with its contents; none if it cannot be read."""
    folder = notes_folder()
    found: list[tuple[Path, dict[str, Any]]] = []
    if folder is not None:
        with suppress(OSError):
            found = [(note, facts) for note in sorted(folder.glob("*.json")) if (facts := _read(note)) is not None]
    return found


def _write_note(token: str, text: str) -> Path | None:
    """Note a temporary folder; None if the state folder cannot be written: then the next start does not find it."""
    folder = notes_folder()
    if folder is None:
        return None
    note = folder / f"{token}.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = note.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(note)
    except OSError:
        return None
    return note


def _read(path: Path) -> dict[str, Any] | None:
    """Contents of a note or marker of this user; None if it is something else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not _is_own(status) or status.st_size > MAX_NOTE_BYTES:
                return None
            facts = json.loads(file.read())
        except (OSError, ValueError, RecursionError):
            return None
    kinds = {"token": str, "folder": str, "target": str, "host": str, "device": int}
    known = isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in kinds.items())
    return facts if known and Path(facts["folder"]).is_absolute() else None


def _is_abandoned(path: Path, token: str) -> bool:
    """Whether ``path`` is a temporary folder of this user, carries ``token``, and belongs to no running process."""
    try:
        status = path.lstat()
    except OSError:
        return False
    if not (stat.S_ISDIR(status.st_mode) and _is_own(status) and path.name.endswith(SUFFIX)) or path in _in_use:
        return False
    facts = _read(path / MARKER)
    if facts is None or facts["token"] != token or (marker := _locked_marker(path)) is None:
        return False
    os.close(marker)
    return True


def _is_gone(path: Path, device: int) -> bool:
    """Whether ``path`` was removed; not if its disk or the folder above it is only out of reach for now."""
    try:
        return path.parent.stat().st_dev == device and not os.path.lexists(path)
    except OSError:
        return False


def _locked_marker(path: Path) -> int | None:
    """Descriptor of the marker of the folder ``path``, now locked by this process; None if another one uses it."""
    try:
        marker = os.open(path / MARKER, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        _lock(marker)
    except OSError:
        os.close(marker)
        return None
    return marker


def _lock(descriptor: int) -> None:
    """Lock a file until its descriptor is closed.  OSError if another process has locked it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, MAX_NOTE_BYTES, os.SEEK_SET)  # other processes may still read the contents
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_own(status: os.stat_result) -> bool:
    return sys.platform == "win32" or status.st_uid == os.geteuid()


def _remove_own(path: Path) -> None:
    """Remove a folder of this process and release its lock."""
    for _ in range(REMOVALS):
        if _remove_contents(path):
            break
    marker = _in_use.pop(path, None)
    if marker is not None:
        os.close(marker)
    _remove_marker(path)


def _remove_contents(path: Path) -> bool:
    """Remove everything in a temporary folder but its marker, by which it can be found again; True if all is gone."""
    with suppress(OSError):
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != MARKER:
                entry.unlink()
    try:
        return _is_bare(path)
    except OSError:
        return not os.path.lexists(path)


def _remove_marker(path: Path) -> None:
    """Remove a temporary folder that is empty but for its marker."""
    with suppress(OSError):
        if _is_bare(path):
            (path / MARKER).unlink(missing_ok=True)
            path.rmdir()


def _is_bare(path: Path) -> bool:
    """Whether a temporary folder has nothing in it but its marker."""
    return {entry.name for entry in path.iterdir()} <= {MARKER}


def _place(target: Path) -> Path:
    """Absolute path of a result; a symbolic link at its end is not followed."""
    return target.parent.resolve() / target.name if target.name else target.resolve()

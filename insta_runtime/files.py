"""Atomic file writing: a temporary file in the same folder is written in full and then renamed onto its target.

Readers therefore see either the old file or the new one, never a partly written one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def partial_path(path: Path) -> Path:
    """Path of the temporary file that `atomic_path` renames onto ``path``; it remains if the process is killed."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def atomic_path(
    path: Path, *, durable: bool = False, concurrent: bool = False, backup: Path | None = None, suffix: str = ""
) -> Iterator[Path]:
    """Path of a temporary file that replaces ``path`` when the block ends, or is deleted if the block raises.

    Args:
        path: the file to write; its folder must exist.
        durable: flush the file and its folder to the disk, so that the new contents survive a power cut.
        concurrent: give the temporary file a name of its own for each process and thread, so that several may write
            ``path`` at the same time; the last one wins.
        backup: where the file that is replaced is kept, in the same folder; ``path`` exists at every moment meanwhile
            if the file system has hard links.
        suffix: appended to the temporary file's name, for writers that choose the format by the extension.

    Raises OSError if the file cannot be written or renamed; ``path`` is then unchanged.
    """
    part = partial_path(path)
    if concurrent:
        part = part.with_name(f"{part.name}.{os.getpid()}.{threading.get_ident()}")
    part = part.with_name(part.name + suffix)
    try:
        yield part
        if durable:
            _flush(part)
        if backup is not None and path.exists():
            _keep_copy(path, backup)
        part.replace(path)
        if durable:
            with suppress(OSError):
                _flush(path.parent)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def atomic_file(
    path: Path, *, durable: bool = False, concurrent: bool = False, backup: Path | None = None, mode: int = 0o666
) -> Iterator[IO[bytes]]:
    """Binary file, open for writing, that replaces ``path`` when the block ends without an exception.

    Args:
        mode: permissions of the new file, less the process's umask.
        path, durable, concurrent, backup: as for `atomic_path`.

    Raises OSError as `atomic_path`.
    """
    with atomic_path(path, durable=durable, concurrent=concurrent, backup=backup) as part:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file


def _flush(path: Path) -> None:
    """Write the cached contents of a file, or the entries of a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep_copy(path: Path, backup: Path) -> None:
    """Make ``backup`` a second name of ``path``; without hard links, move ``path`` there."""
    link = partial_path(backup)
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        link.replace(backup)
    except OSError:
        path.replace(backup)

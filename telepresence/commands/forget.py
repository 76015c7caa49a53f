"""Delete an avatar for good: the files that this program wrote, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from insta_runtime.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def forget(path: Path | None, *, everything: bool, sure: bool, ask: Callable[[str], bool]) -> None:
    """List what belongs to the avatar at ``path``, ask, and delete it.

    Args:
        path: its folder or its file; None with ``everything``: all avatars in the user's data folder.
        sure: do not ask. ask: puts a question, True for yes.

    UserError if there is no avatar, or if what is there belongs to somebody else; nothing is deleted then.
    """
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    if everything == (path is not None):
        raise UserError("forget takes either an avatar (telepresence forget DIR) or --all")
    folders = default_avatars() if path is None else [path]
    found = [what_belongs(folder) for folder in folders]
    if not found:
        console.print("there is nothing to forget")
        return
    doomed = [item for items in found for item in items]
    for item in doomed:
        _show(console, item)
    if not sure and not ask(f"Delete {'this' if len(doomed) == 1 else f'these {len(doomed)}'} for good?"):
        console.print("nothing was deleted")
        return
    for folder, items in zip(folders, found, strict=True):
        for item in items:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    console.print("deleted")


def default_avatars() -> list[Path]:
    """The avatars of calls that were given no place."""
    from platformdirs import user_data_path

    from insta_runtime.avatar import is_stored
    from telepresence.learning.frame_archive import archive_folder

    folder = user_data_path("telepresence") / "avatars"
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if is_stored(each) or archive_folder(each).is_dir())


def what_belongs(path: Path) -> list[Path]:
    """All that this program has written of the avatar at ``path``, files before folders.

    UserError if that is no avatar, or holds anything else.
    """
    from insta_runtime import avatar_file as files
    from insta_runtime.avatar import avatar_file
    from insta_runtime.files import partial_path
    from telepresence.commands.fit import figures_file
    from telepresence.learning.frame_archive import archive_folder
    from telepresence.learning.saving import training_file

    file, training, album = avatar_file(path), training_file(path), archive_folder(path)
    whole = [file, files.previous(file), training, files.previous(training)]
    if not any(each.is_file() for each in whole) and not album.is_dir():
        raise UserError(f"there is no avatar at {path}: nothing was deleted")
    for each in whole:
        if each.exists() and not _is_ours(each):
            raise UserError(f"{each} is not what this program wrote: delete it yourself; nothing was deleted")
    if album.exists():
        _check_album(album)
    items = [*whole, *(partial_path(each) for each in whole), figures_file(path)]
    found = [each for each in items if each.is_file()]
    return [*found, *([album] if album.is_dir() else [])]


def _is_ours(file: Path) -> bool:
    """Whether a file looks like one of safetensors: a damaged one is still to be deleted."""
    if file.is_symlink() or not file.is_file():
        return False
    size = file.stat().st_size
    with file.open("rb") as content:
        begin = content.read(9)
    return size < 9 or begin[8:9] == b"{"


def _check_album(album: Path) -> None:
    """UserError unless everything in it was written by `learning.album`."""
    known = {"frames": ".jpg", "alpha": ".png", "body": ".png"}
    for page in album.iterdir():
        if page.is_symlink() or not (page.is_dir() and page.name.isdecimal()):
            raise UserError(f"{page} was not written by this program: delete it yourself; nothing was deleted")
        for item in page.iterdir():
            inside = known.get(item.name)
            whole = inside is not None and item.is_dir() and not item.is_symlink()
            if whole and all(each.suffix == inside and each.is_file() for each in item.iterdir()):
                continue
            if item.is_file() and (item.name in ("take.npz", "meta.json", "aside.npz") or item.name[:6] == ".meta."):
                continue
            raise UserError(f"{item} was not written by this program: delete it yourself; nothing was deleted")


def _show(console: Console, item: Path) -> None:
    parts = [item, *item.rglob("*")] if item.is_dir() else [item]
    size = sum(part.stat().st_size for part in parts if part.is_file())
    pictures = sum(part.suffix == ".jpg" for part in parts)
    many = f", {pictures} pictures" if item.is_dir() else ""
    console.print(f"{item}  {size / 1e6:.1f} MB{many}", markup=False)

"""`telepresence forget`: delete an avatar with all files that this program wrote for it, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from insta_runtime.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def command(
    avatar: Annotated[
        Path | None, typer.Argument(metavar="AVATAR", help="Avatar: its folder, or its .safetensors file.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all avatars of calls without --avatar.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking for confirmation.")] = False,
) -> None:
    """Delete an avatar, its training and its archived frames permanently."""
    forget(avatar, everything=everything, confirmed=yes, confirm=typer.confirm)


def forget(path: Path | None, *, everything: bool, confirmed: bool, confirm: Callable[[str], bool]) -> None:
    """List the files of an avatar, ask for confirmation, and delete them.

    Args:
        path: the avatar's folder or file; None with ``everything``.
        everything: delete all avatars in the user's data folder.
        confirmed: do not ask for confirmation.
        confirm: function that asks the user a question and returns True for yes.

    UserError if there is no avatar, or if one of the files was not written by this program; nothing is deleted then.
    """
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    if everything == (path is not None):
        raise UserError("forget takes either an avatar (telepresence forget DIR) or --all")
    folders = default_avatars() if path is None else [path]
    found = [what_belongs(folder) for folder in folders]
    if not found:
        console.print("there is no avatar to delete")
        return
    listed = [item for items in found for item in items]
    for item in listed:
        _print_item(console, item)
    if not confirmed and not confirm(f"Delete {'this' if len(listed) == 1 else f'these {len(listed)}'} permanently?"):
        console.print("nothing was deleted")
        return
    for folder, items in zip(folders, found, strict=True):
        for item in items:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    console.print("deleted")


def default_avatars() -> list[Path]:
    """Avatars in the user's data folder, where calls without ``--avatar`` save them."""
    from platformdirs import user_data_path

    from insta_runtime.avatar import is_stored
    from telepresence.learning.frame_archive import archive_folder

    folder = user_data_path("telepresence") / "avatars"
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if is_stored(each) or archive_folder(each).is_dir())


def what_belongs(path: Path) -> list[Path]:
    """Files and folders that this program has written for the avatar at ``path``, files first.

    UserError if there is no avatar, or if one of them was not written by this program.
    """
    from insta_runtime import avatar_file as files
    from insta_runtime.avatar import avatar_file
    from insta_runtime.files import partial_path
    from telepresence.learning.frame_archive import archive_folder
    from telepresence.learning.saving import training_file
    from telepresence.measure.offline.fit_figures import figures_file

    file, training, archive = avatar_file(path), training_file(path), archive_folder(path)
    whole = [file, files.previous(file), training, files.previous(training)]
    if not any(each.is_file() for each in whole) and not archive.is_dir():
        raise UserError(f"there is no avatar at {path}: nothing was deleted")
    for each in whole:
        if each.exists() and not _is_ours(each):
            raise UserError(f"{each} was not written by this program: nothing was deleted; delete it yourself")
    if archive.exists():
        _check_archive(archive)
    items = [*whole, *(partial_path(each) for each in whole), figures_file(path)]
    found = [each for each in items if each.is_file()]
    return [*found, *([archive] if archive.is_dir() else [])]


def _is_ours(file: Path) -> bool:
    """Whether a file begins like a safetensors file; a damaged one may be deleted too."""
    if file.is_symlink() or not file.is_file():
        return False
    size = file.stat().st_size
    with file.open("rb") as content:
        begin = content.read(9)
    return size < 9 or begin[8:9] == b"{"


def _check_archive(archive: Path) -> None:
    """Raise UserError unless everything in the folder was written by `learning.frame_archive`."""
    known = {"frames": ".jpg", "alpha": ".png", "body": ".png"}
    for chapter in archive.iterdir():
        if chapter.is_symlink() or not (chapter.is_dir() and chapter.name.isdecimal()):
            raise UserError(f"{chapter} was not written by this program: nothing was deleted; delete it yourself")
        for item in chapter.iterdir():
            inside = known.get(item.name)
            whole = inside is not None and item.is_dir() and not item.is_symlink()
            if whole and all(each.suffix == inside and each.is_file() for each in item.iterdir()):
                continue
            if item.is_file() and (item.name in ("take.npz", "meta.json", "aside.npz") or item.name[:6] == ".meta."):
                continue
            raise UserError(f"{item} was not written by this program: nothing was deleted; delete it yourself")


def _print_item(console: Console, item: Path) -> None:
    parts = [item, *item.rglob("*")] if item.is_dir() else [item]
    size = sum(part.stat().st_size for part in parts if part.is_file())
    frames = sum(part.suffix == ".jpg" for part in parts)
    number = f", {frames} frames" if item.is_dir() else ""
    console.print(f"{item}  {size / 1e6:.1f} MB{number}", markup=False)

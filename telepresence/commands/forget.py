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
    everything: Annotated[
        bool, typer.Option("--all", help="Delete all avatars of calls without --avatar, and all unfinished files.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking for confirmation.")] = False,
) -> None:
    """Delete an avatar, its training, its archived frames, and unfinished files of killed commands permanently."""
    forget(avatar, everything=everything, confirmed=yes, confirm=typer.confirm)


def forget(path: Path | None, *, everything: bool, confirmed: bool, confirm: Callable[[str], bool]) -> None:
    """List the files of an avatar, ask for confirmation, and delete them; also what killed commands have left.

    Args:
        path: the avatar's folder or file, or a result that a killed command left unfinished; None with ``everything``.
        everything: delete all avatars in the user's data folder, and the unfinished files of all killed commands.
        confirmed: do not ask for confirmation.
        confirm: function that asks the user a question and returns True for yes.

    UserError if there is no avatar, or if one of the files was not written by this program; nothing is deleted then.
    """
    from rich.console import Console

    from telepresence.runtime.scratch_folder import abandoned_beside, abandoned_folders

    console = Console(soft_wrap=True, highlight=False)
    if everything == (path is not None):
        raise UserError("forget takes either an avatar (telepresence forget DIR) or --all")
    unfinished = abandoned_folders() if path is None else abandoned_beside(path)
    folders = default_avatars() if path is None else [path]
    if path is not None and unfinished and not has_files(path):
        folders = []  # there is nothing but what a killed command has left beside it
    found = [what_belongs(folder) for folder in folders]
    if not found and not unfinished:
        console.print("there is no avatar to delete")
        return
    listed = [*(item for items in found for item in items), *(each.path for each in unfinished)]
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
    kept = [str(each.path) for each in unfinished if not each.remove()]
    if kept:
        raise UserError(f"these folders cannot be deleted, delete them yourself: {', '.join(kept)}")
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
    from insta_runtime.files import partial_path
    from telepresence.learning.frame_archive import archive_folder
    from telepresence.measure.offline.fit_figures import figures_file

    archive, whole = archive_folder(path), _avatar_files(path)
    if not has_files(path):
        raise UserError(f"there is no avatar at {path}: nothing was deleted")
    for each in whole:
        if each.exists() and not _is_ours(each):
            raise UserError(f"{each} was not written by this program: nothing was deleted; delete it yourself")
    if archive.exists():
        _check_archive(archive)
    items = [*whole, *(partial_path(each) for each in whole), figures_file(path)]
    found = [each for each in items if each.is_file()]
    return [*found, *([archive] if archive.is_dir() else [])]


def has_files(path: Path) -> bool:
    """Whether there is an avatar at ``path``, or a training state or archived frames of one; they may be damaged."""
    from telepresence.learning.frame_archive import archive_folder

    return any(each.is_file() for each in _avatar_files(path)) or archive_folder(path).is_dir()


def _avatar_files(path: Path) -> list[Path]:
    """Where an avatar, its training state, and the previous files of both are saved."""
    from insta_runtime import avatar_file as files
    from insta_runtime.avatar import avatar_file
    from telepresence.learning.saving import training_file

    file, training = avatar_file(path), training_file(path)
    return [file, files.previous(file), training, files.previous(training)]


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
    from insta_runtime.files import partial_path

    known = {"frames": ".jpg", "alpha": ".png", "body": ".png"}
    known_files = ("take.npz", "meta.json", "aside.npz", partial_path(Path("take.npz")).name)
    for chapter in archive.iterdir():
        if chapter.is_symlink() or not (chapter.is_dir() and chapter.name.isdecimal()):
            raise UserError(f"{chapter} was not written by this program: nothing was deleted; delete it yourself")
        for item in chapter.iterdir():
            inside = known.get(item.name)
            whole = inside is not None and item.is_dir() and not item.is_symlink()
            if whole and all(each.suffix == inside and each.is_file() for each in item.iterdir()):
                continue
            if item.is_file() and (item.name in known_files or item.name.startswith(".meta.")):
                continue
            raise UserError(f"{item} was not written by this program: nothing was deleted; delete it yourself")


def _print_item(console: Console, item: Path) -> None:
    parts = [item, *item.rglob("*")] if item.is_dir() else [item]
    size = sum(part.stat().st_size for part in parts if part.is_file())
    frames = sum(part.suffix == ".jpg" for part in parts)
    number = f", {frames} frames" if item.is_dir() else ""
    console.print(f"{item}  {size / 1e6:.1f} MB{number}", markup=False)

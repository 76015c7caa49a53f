"""Writers of tracked folders (docs/formats.md), on disk and in memory; the reader is `insta_runtime.tracked`."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insta_runtime.errors import UserError
from insta_runtime.tracked import FORMAT_VERSION, TrackedFolder, frame_name, write_take
from insta_runtime.types import Bytes, Take
from telepresence.runtime.scratch_folder import ScratchFolder

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_QUALITY = 90
"""JPEG quality of the frames in a tracked folder."""


class TrackedWriter(ABC):
    """Base class of writers of one tracked folder: frames are written by `add`, then take and metadata by `finish`."""

    def add(self, index: int, rgb: Bytes, alpha: Bytes, body: Bytes) -> None:
        """Write frame ``index``, from any thread: rgb (H, W, 3) uint8, and two mattes (H, W) uint8.

        ``alpha`` is the matte of the head (body matte times neck ramp), ``body`` that of the whole person.
        """
        from PIL import Image

        self._write(f"frames/{frame_name(index)}.jpg", _encoded(Image.fromarray(rgb), "JPEG", quality=JPEG_QUALITY))
        for name, matte in (("alpha", alpha), ("body", body)):
            self._write(f"{name}/{frame_name(index)}.png", _encoded(Image.fromarray(matte), "PNG", compress_level=3))

    def finish(self, take: Take, *, head_name: str, head_file: Path | None, facts: dict[str, Any]) -> None:
        """Complete the folder: write take.npz and meta.json, to which ``facts`` (source, crop, tracker) are added."""
        meta = {
            "format_version": FORMAT_VERSION,
            "head": {
                "name": head_name,
                "sha256": take.head_sha256,
                "file": str(head_file.resolve()) if head_file is not None else None,
            },
            "frames": len(take.states),
            "fps": take.fps,
            **facts,
        }
        content = io.BytesIO()
        write_take(content, take)
        self._write("take.npz", content.getvalue())
        self._write("meta.json", (json.dumps(meta, indent=1) + "\n").encode())
        self._complete()

    @abstractmethod
    def _write(self, name: str, content: bytes) -> None:
        """Write the file ``name`` (path relative to the folder); called from any thread."""

    @abstractmethod
    def _complete(self) -> None:
        """Make the folder available: called after all files have been written."""


class TrackedMemoryWriter(TrackedWriter):
    """Writer that keeps a tracked folder in memory; nothing is written to disk.

    Attributes:
        folder: the tracked folder; set by `finish`.
    """

    folder: TrackedFolder

    def __init__(self, path: Path) -> None:
        """``path`` is the name of the folder in error messages; nothing is written there."""
        self._path = path
        self._files: dict[str, bytes] = {}

    def _write(self, name: str, content: bytes) -> None:
        self._files[name] = content

    def _complete(self) -> None:
        self.folder = TrackedFolder.in_memory(self._path, self._files)


class TrackedFolderWriter(TrackedWriter):
    """Writer that builds a tracked folder in a temporary folder and moves it to ``path`` when it is complete.

    A context manager: without a call of `finish`, all files are removed on exit.  An older tracked folder at ``path``
    is replaced; if anything else is there, the constructor raises UserError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        _refuse_to_destroy(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = ScratchFolder(self.path)
            self._part = self._scratch.path / "new"
            for name in ("frames", "alpha", "body"):
                (self._part / name).mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): choose another --out") from None

    def __enter__(self) -> TrackedFolderWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.remove()

    def _write(self, name: str, content: bytes) -> None:
        try:
            (self._part / name).write_bytes(content)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): free disk space") from None

    def _complete(self) -> None:
        try:
            _refuse_to_destroy(self.path)
            if self.path.exists():
                self.path.rename(self._scratch.path / "old")
            self._part.rename(self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): choose another --out") from None


def _encoded(image: Image, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _refuse_to_destroy(path: Path) -> None:
    if not path.exists():
        return
    tracked = path.is_dir() and (path / "take.npz").is_file() and (path / "meta.json").is_file()
    empty = path.is_dir() and not any(path.iterdir())
    if not (tracked or empty):
        raise UserError(f"{path} exists and is not a tracked folder: choose another --out")

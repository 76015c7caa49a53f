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
    """Writer of one tracked folder: frames by `add`, from any thread, then the rest by `finish`."""

    def add(self, index: int, rgb: Bytes, alpha: Bytes, body: Bytes) -> None:
        """Write frame ``index``: rgb (H, W, 3) uint8, alpha and body matte (H, W) uint8."""
        from PIL import Image

        self._write(f"frames/{frame_name(index)}.jpg", _encoded(Image.fromarray(rgb), "JPEG", quality=JPEG_QUALITY))
        for name, matte in (("alpha", alpha), ("body", body)):
            self._write(f"{name}/{frame_name(index)}.png", _encoded(Image.fromarray(matte), "PNG", compress_level=3))

    def finish(self, take: Take, *, head_name: str, head_file: Path | None, facts: dict[str, Any]) -> None:
        """Write the take and meta.json (with ``facts`` on source, crop and tracker), which complete the folder."""
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
        """Write one file by its path in the folder; from any thread."""

    @abstractmethod
    def _complete(self) -> None:
        """All files are written."""


class TrackedMemoryWriter(TrackedWriter):
    """Writes a tracked folder into memory: nothing of it ever reaches the disk.

    Attributes:
        folder: the tracked folder, after `finish`.
    """

    folder: TrackedFolder

    def __init__(self, path: Path) -> None:
        """``path`` is the name of the folder in errors; nothing is written there."""
        self._path = path
        self._files: dict[str, bytes] = {}

    def _write(self, name: str, content: bytes) -> None:
        self._files[name] = content

    def _complete(self) -> None:
        self.folder = TrackedFolder.in_memory(self._path, self._files)


class TrackedFolderWriter(TrackedWriter):
    """Writes a tracked folder to a temporary folder and moves it into place when it is complete.

    A context manager: leaving it without `finish` leaves no files behind.  An older tracked folder at ``path`` is
    replaced; if anything else is there, UserError is raised before any work.
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

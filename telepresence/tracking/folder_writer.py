"""Writer of tracked folders (docs/formats.md); the reader is `insta_runtime.tracked`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from insta_runtime.errors import UserError
from insta_runtime.tracked import FORMAT_VERSION, frame_name, write_take
from insta_runtime.types import Bytes, Take

JPEG_QUALITY = 90
"""JPEG quality of the frames in a tracked folder."""


class TrackedFolderWriter:
    """Writes a tracked folder to a temporary folder and moves it into place when it is complete.

    A context manager: leaving it without `finish` leaves no files behind.  An older tracked folder at ``path`` is
    replaced; if anything else is there, UserError is raised before any work.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        _refuse_to_destroy(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._part = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
            for name in ("frames", "alpha", "body"):
                (self._part / name).mkdir()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): choose another --out") from None

    def __enter__(self) -> TrackedFolderWriter:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._part, ignore_errors=True)

    def add(self, index: int, rgb: Bytes, alpha: Bytes, body: Bytes) -> None:
        """Write frame ``index``: rgb (H, W, 3) uint8, alpha and body matte (H, W) uint8."""
        from PIL import Image

        try:
            Image.fromarray(rgb).save(self._part / "frames" / f"{frame_name(index)}.jpg", quality=JPEG_QUALITY)
            for name, matte in (("alpha", alpha), ("body", body)):
                Image.fromarray(matte).save(self._part / name / f"{frame_name(index)}.png", compress_level=3)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): free disk space") from None

    def finish(self, take: Take, *, head_name: str, head_file: Path | None, facts: dict[str, Any]) -> None:
        """Write the take and meta.json (with ``facts`` on source, crop and tracker), and move the folder into place."""
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
        try:
            write_take(self._part / "take.npz", take)
            (self._part / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            _refuse_to_destroy(self.path)
            self._part.chmod(0o777 & ~_umask())
            if self.path.exists():
                shutil.rmtree(self.path)
            self._part.rename(self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): choose another --out") from None


def _refuse_to_destroy(path: Path) -> None:
    if not path.exists():
        return
    tracked = path.is_dir() and (path / "take.npz").is_file() and (path / "meta.json").is_file()
    empty = path.is_dir() and not any(path.iterdir())
    if not (tracked or empty):
        raise UserError(f"{path} exists and is not a tracked folder: choose another --out")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Frame archive: training frames stored on disk, only if the user asked for it (``run.keep_frames``).

The folder ``frames/`` beside the avatar holds one tracked folder (docs/formats.md) for each call and camera window.
The next call trains on these frames again.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from insta_runtime.errors import UserError
from insta_runtime.files import atomic_file

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from insta_runtime.types import Camera, Float32, Observation

log = logging.getLogger("telepresence")

KEEP_ALL: Final = 600
"""Number of first frames of a call that are all kept (two minutes); later, near frame n, one in n / `KEEP_ALL`."""
MAX_FRAMES: Final = 4000
"""Maximum number of archived frames of earlier calls (about 400 MB); beyond it the oldest calls are deleted."""
MAX_QUEUED: Final = 64
"""Maximum number of frames queued for writing; further frames replace the oldest."""
FPS: Final = 5.0
"""Frame rate (frames per second) written to the metadata: the rate at which a call accepts frames for training."""
JPEG_QUALITY: Final = 95
"""JPEG quality of archived frames."""


def archive_folder(path: Path) -> Path:
    """Folder of the archived frames of the avatar at ``path``."""
    from insta_runtime.avatar import avatar_file

    file = avatar_file(path)
    return file.with_name("frames" if file.stem == "avatar" else f"{file.stem}.frames")


class FrameArchive:
    """On-disk archive of one subject's training frames.

    `add` may be called from any thread, `write` from one thread at a time.

    Attributes:
        folder: the archive's folder.
        keep: whether new frames are stored; if False, only frames of earlier calls are read.
    """

    def __init__(self, folder: Path, head: HeadModel, shape: Float32, *, keep: bool = True) -> None:
        self.folder, self.keep, self._head, self._shape = folder, keep, head, shape
        self._queue: deque[Observation] = deque(maxlen=MAX_QUEUED)
        self._lock = threading.Lock()
        self._count = 0
        self._next = 1.0
        self._open: Path | None = None  # tracked folder that is being written
        self._written: list[Observation] = []  # its observations, without pixels

    def add(self, observation: Observation) -> None:
        """Queue a frame that was used for training for `write`; after `KEEP_ALL` frames only some are queued."""
        if not self.keep:
            return
        with self._lock:
            self._count += 1
            if self._count >= self._next:
                self._next = max(self._next + 1.0, self._next * (1.0 + 1.0 / KEEP_ALL))
                self._queue.append(observation)

    def write(self) -> None:
        """Write the queued frames to disk.  UserError if they cannot be written."""
        with self._lock:
            queued, self._queue = list(self._queue), deque(maxlen=MAX_QUEUED)
        try:
            for observation in queued:
                if self._open is None or self._written[0].camera != observation.camera:
                    self._write_take()
                    self._begin_folder()
                self._write_frame(observation)
            if queued:
                self._write_take()
        except OSError as error:
            raise UserError(
                f"frames cannot be stored in {self.folder}: {error.strerror}: free space, or do without --keep-frames"
            ) from None

    def stored_observations(self) -> Iterator[Observation]:
        """Iterate over the frames of earlier calls, oldest first.

        Folders that cannot be read, or that belong to another head model or identity code, are skipped with a warning.
        """
        from insta_runtime.tracked import TrackedFolder

        for folder in _tracked_folders(self.folder):
            try:
                _repair_meta(folder)
                tracked = TrackedFolder.open(folder)
                fits = tracked.take.head_sha256 == self._head.sha256 and len(tracked.take.shape) == len(self._shape)
                if not fits or abs(tracked.take.shape - self._shape).max() > 1e-6:
                    log.warning("%s shows another person or head model than the avatar; it is not used", folder)
                    continue
                for index in tracked.frames:
                    yield tracked.observation(int(index))
            except UserError as error:
                log.warning("%s", error)

    def _begin_folder(self) -> None:
        """Create the next tracked folder, for a new call or camera; deletes the oldest ones above `MAX_FRAMES`."""
        folders = _tracked_folders(self.folder)
        number = int(folders[-1].name) + 1 if folders else 0
        while sum(_count_frames(folder) for folder in folders) > MAX_FRAMES:
            shutil.rmtree(folders.pop(0))
        self._open, self._written = self.folder / f"{number:04d}", []
        for name in ("frames", "alpha", "body"):
            (self._open / name).mkdir(parents=True)

    def _write_frame(self, observation: Observation) -> None:
        from dataclasses import replace

        import numpy as np
        from PIL import Image

        from insta_runtime.tracked import frame_name

        assert self._open is not None
        name = frame_name(len(self._written))
        body = observation.body if observation.body is not None else observation.alpha
        Image.fromarray(observation.rgb).save(self._open / "frames" / f"{name}.jpg", quality=JPEG_QUALITY)
        for folder, matte in (("alpha", observation.alpha), ("body", body)):
            Image.fromarray(matte).save(self._open / folder / f"{name}.png", compress_level=3)
        nothing = np.zeros((0, 0, 3), np.uint8)
        self._written.append(replace(observation, rgb=nothing, alpha=nothing[..., 0], body=None))

    def _write_take(self) -> None:
        """Write take and metadata of the open folder, which make it a valid tracked folder."""
        import numpy as np

        from insta_runtime.tracked import write_take
        from insta_runtime.types import Take

        if self._open is None:
            return
        camera: Camera = self._written[0].camera
        take = Take(
            states=tuple(written.state for written in self._written),
            valid=np.ones(len(self._written), dtype=np.bool_),
            shape=self._shape,
            camera=camera,
            crop=(0.0, 0.0, float(max(camera.width, camera.height))),
            head_sha256=self._head.sha256,
            fps=FPS,
        )
        with atomic_file(self._open / "take.npz") as file:
            write_take(file, take)
        head = {"name": self._head.name, "sha256": self._head.sha256, "file": None}
        facts = {"fps": FPS, "source": "call", "crop_policy": "auto", "tracker": {}}
        _write_meta(self._open, {"format_version": 1, "head": head, "frames": len(self._written), **facts})


def _tracked_folders(folder: Path) -> list[Path]:
    """Tracked folders of an archive, the oldest first."""
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.is_dir() and each.name.isdecimal())


def _count_frames(folder: Path) -> int:
    return sum(1 for _ in (folder / "frames").glob("*.jpg"))


def _repair_meta(folder: Path) -> None:
    """Correct the number of frames in the metadata if the program was killed between writing take and metadata."""
    from insta_runtime.tracked import read_take

    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        count = len(read_take(folder).states)
        if meta.get("frames") != count:
            _write_meta(folder, meta | {"frames": count})
    except (OSError, ValueError, AttributeError, UserError):
        return  # `TrackedFolder.open` reports the error


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    with atomic_file(folder / "meta.json", concurrent=True) as file:
        file.write((json.dumps(meta, indent=1) + "\n").encode())

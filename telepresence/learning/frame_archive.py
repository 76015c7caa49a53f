"""The pictures that learning took, kept on disk, if and only if that was asked for (``run.keep_frames``).

Beside the avatar lies ``frames/``, with a tracked folder (docs/formats.md) for each call and each place of the camera;
the next call learns from them again.
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

ALL: Final = 600
"""So many pictures of a call are all kept, two minutes'; then ever fewer, one in n / ALL of the n-th."""
MOST: Final = 4000
"""Pictures of earlier calls that are kept, about 400 MB; whole calls go when there are more, the earliest first."""
WAITING: Final = 64
"""Pictures that wait to be written; where the disk is slower, they are not kept."""
RATE: Final = 5.0
"""Pictures a second that a call learns from, for the meta data."""
JPEG_QUALITY: Final = 95


def archive_folder(path: Path) -> Path:
    """Where the pictures of the avatar at ``path`` are."""
    from insta_runtime.avatar import avatar_file

    file = avatar_file(path)
    return file.with_name("frames" if file.stem == "avatar" else f"{file.stem}.frames")


class FrameArchive:
    """Keeps pictures of one person in ``folder``; if not ``keep``, only gives back what earlier calls have kept.

    Any thread may `offer`, one at a time `write`.
    """

    def __init__(self, folder: Path, head: HeadModel, shape: Float32, *, keep: bool = True) -> None:
        self.folder, self.keep, self._head, self._shape = folder, keep, head, shape
        self._waiting: deque[Observation] = deque(maxlen=WAITING)
        self._lock = threading.Lock()
        self._offered = 0
        self._next = 1.0
        self._page: Path | None = None
        self._kept: list[Observation] = []  # of the page, without their pictures

    def offer(self, observation: Observation) -> None:
        """A picture was taken to learn from: keep it, or one of those like it."""
        if not self.keep:
            return
        with self._lock:
            self._offered += 1
            if self._offered >= self._next:
                self._next = max(self._next + 1.0, self._next * (1.0 + 1.0 / ALL))
                self._waiting.append(observation)

    def write(self) -> None:
        """Write what waits.  UserError if it cannot be written."""
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque(maxlen=WAITING)
        try:
            for observation in waiting:
                if self._page is None or self._kept[0].camera != observation.camera:
                    self._finish()
                    self._turn()
                self._add(observation)
            if waiting:
                self._finish()
        except OSError as error:
            raise UserError(f"pictures cannot be kept in {self.folder}: {error.strerror}") from None

    def stored(self) -> Iterator[Observation]:
        """The pictures of earlier calls, in order, but for those of another head or another identity."""
        from insta_runtime.tracked import TrackedFolder

        for page in _pages(self.folder):
            try:
                _mend(page)
                tracked = TrackedFolder.open(page)
                fits = tracked.take.head_sha256 == self._head.sha256 and len(tracked.take.shape) == len(self._shape)
                if not fits or abs(tracked.take.shape - self._shape).max() > 1e-6:
                    log.warning("%s is of another person or head than the avatar, and not learned from", page)
                    continue
                for index in tracked.frames:
                    yield tracked.observation(int(index))
            except UserError as error:
                log.warning("%s", error)

    def _turn(self) -> None:
        """Begin the next page, for another call or another camera."""
        pages = _pages(self.folder)
        number = int(pages[-1].name) + 1 if pages else 0
        while sum(_count(page) for page in pages) > MOST:
            shutil.rmtree(pages.pop(0))
        self._page, self._kept = self.folder / f"{number:04d}", []
        for name in ("frames", "alpha", "body"):
            (self._page / name).mkdir(parents=True)

    def _add(self, observation: Observation) -> None:
        from dataclasses import replace

        import numpy as np
        from PIL import Image

        from insta_runtime.tracked import frame_name

        assert self._page is not None
        name = frame_name(len(self._kept))
        body = observation.body if observation.body is not None else observation.alpha
        Image.fromarray(observation.rgb).save(self._page / "frames" / f"{name}.jpg", quality=JPEG_QUALITY)
        for folder, matte in (("alpha", observation.alpha), ("body", body)):
            Image.fromarray(matte).save(self._page / folder / f"{name}.png", compress_level=3)
        nothing = np.zeros((0, 0, 3), np.uint8)
        self._kept.append(replace(observation, rgb=nothing, alpha=nothing[..., 0], body=None))

    def _finish(self) -> None:
        """Make the page a tracked folder as it is now."""
        import numpy as np

        from insta_runtime.tracked import write_take
        from insta_runtime.types import Take

        if self._page is None:
            return
        camera: Camera = self._kept[0].camera
        take = Take(
            states=tuple(kept.state for kept in self._kept),
            valid=np.ones(len(self._kept), dtype=np.bool_),
            shape=self._shape,
            camera=camera,
            crop=(0.0, 0.0, float(max(camera.width, camera.height))),
            head_sha256=self._head.sha256,
            fps=RATE,
        )
        with atomic_file(self._page / "take.npz") as file:
            write_take(file, take)
        head = {"name": self._head.name, "sha256": self._head.sha256, "file": None}
        facts = {"fps": RATE, "source": "call", "crop_policy": "auto", "tracker": {}}
        _write_meta(self._page, {"format_version": 1, "head": head, "frames": len(self._kept), **facts})


def _pages(folder: Path) -> list[Path]:
    """The tracked folders of an archive, the earliest first."""
    if not folder.is_dir():
        return []
    return sorted(page for page in folder.iterdir() if page.is_dir() and page.name.isdecimal())


def _count(page: Path) -> int:
    return sum(1 for _ in (page / "frames").glob("*.jpg"))


def _mend(page: Path) -> None:
    """Make the meta data agree with the take, if the program was killed between writing one and the other."""
    from insta_runtime.tracked import read_take

    try:
        meta = json.loads((page / "meta.json").read_text(encoding="utf-8"))
        count = len(read_take(page).states)
        if meta.get("frames") != count:
            _write_meta(page, meta | {"frames": count})
    except (OSError, ValueError, AttributeError, UserError):
        return  # whoever opens it will say what is wrong


def _write_meta(page: Path, meta: dict[str, Any]) -> None:
    with atomic_file(page / "meta.json", concurrent=True) as file:
        file.write((json.dumps(meta, indent=1) + "\n").encode())

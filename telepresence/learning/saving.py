"""Saving an avatar, and what its training needs to go on, without anybody waiting for the disk.

What is saved was copied when it was published and is never written to again; a thread that lives for one save copies it
from the device, hashes and writes it.  Beside ``avatar.safetensors`` lies ``avatar.training.safetensors``, and of both
the one before.  A training names the avatar that it belongs to, and is written first: whenever the process is killed,
there is a pair that fits.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from insta_runtime import avatar_file as files
from insta_runtime.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from insta_runtime.avatar import Avatar, Record
    from insta_runtime.learn.trainer import Trainer
    from insta_runtime.learn.training_state import TrainingState
    from telepresence.learning.frame_archive import FrameArchive

log = logging.getLogger("telepresence")

SAVE_PART: Final = 0.05
"""Part of the time that saving may take: a slow disk is written to less often than asked for."""
RETRY_S: Final = 60.0
"""Seconds until the next attempt after one that failed: the disk is full, say."""


def training_file(path: Path) -> Path:
    """The file beside the avatar at ``path`` that its training goes on from."""
    from insta_runtime.avatar import avatar_file

    return avatar_file(path).with_suffix(".training.safetensors")


@dataclass(frozen=True)
class SavePoint:
    """One save: an avatar and its training as they were at one moment.

    ``written`` are the events of a GPU after which they are whole.
    """

    record: Record
    training: TrainingState
    written: tuple[torch.cuda.Event, ...] = ()

    @staticmethod
    def of(record: Record, training: TrainingState, trainer: Trainer) -> SavePoint:
        """What was copied on the streams of the caller and of ``trainer``."""
        device = trainer.model.device
        if device.type != "cuda":
            return SavePoint(record, training)
        import torch

        with trainer.on_stream():
            learned = torch.cuda.current_stream(device).record_event()
        return SavePoint(record, training, (learned, torch.cuda.current_stream(device).record_event()))


class AvatarWriter:
    """Writes saves to ``path``, one at a time.  Belongs to the thread that learns.

    Attributes:
        steps: of the newest avatar on the disk. sha256: its seal. saved_at: when it was written, monotonic seconds.
        trouble: why the last attempt failed, None if it did not.
    """

    def __init__(self, path: Path, avatar: Avatar, every_s: float, archive: FrameArchive | None = None) -> None:
        """``archive`` is written with each save."""
        self.path, self.steps, self.every_s, self.archive = path, avatar.steps, every_s, archive
        self._spoilt = avatar.spoilt  # what is damaged must not take the place of what is not
        self.sha256: str | None = None
        self.trouble: str | None = None
        self.saved_at = time.monotonic()
        self._due = self.saved_at + every_s
        self._thread: threading.Thread | None = None
        self._stream: torch.cuda.Stream | None = None  # one for all saves: memory of a GPU is kept for each apart

    def due(self, now: float) -> bool:
        """Whether it is time for the next save, and none is under way."""
        return now >= self._due and not self._busy()

    def start(self, save: SavePoint) -> None:
        """Write ``save`` in the background, once the one under way is done."""
        self.finish()
        self._due = time.monotonic() + self.every_s
        self._thread = threading.Thread(target=self._run, args=(save,), name="save")
        self._thread.start()

    def finish(self) -> None:
        """Wait until what was started is written, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, save: SavePoint) -> None:
        began = time.monotonic()
        try:
            self.sha256 = self._write(save)
            self.steps, self._spoilt = save.training.steps, False
            if self.archive is not None:
                self.archive.write()
            self.trouble = None
        except UserError as error:
            self.trouble = str(error)
        except Exception as error:  # of a lost GPU, say: learning will meet it, too
            log.debug("saving failed", exc_info=True)
            self.trouble = f"the avatar cannot be saved: {type(error).__name__}: {error}"
        self.saved_at = time.monotonic()
        took = self.saved_at - began
        wait = RETRY_S if self.trouble is not None else max(self.every_s, took / SAVE_PART)
        self._due = began + wait

    def _write(self, save: SavePoint) -> str:
        if not save.written:
            return write(self.path, save, keep=not self._spoilt)
        import torch

        stream = self._stream = self._stream or torch.cuda.Stream()
        for event in save.written:
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            return write(self.path, save, keep=not self._spoilt)


def write(path: Path, save: SavePoint, *, keep: bool) -> str:
    """Write both files, and ``keep`` those before them; returns the avatar's seal.

    UserError if they cannot be written; what was there stays.
    """
    sha256 = files.seal_of(save.record.header, save.record.tensors)
    files.write(training_file(path), *save.training.file_contents(sha256), keep=keep)
    return save.record.write(path, keep=keep)


def stored_training(path: Path, avatar: Avatar) -> TrainingState | None:
    """The training of ``avatar``, as it was read from ``path``; None, with a line in the log, if there is none."""
    from insta_runtime.learn.training_state import TrainingState

    if avatar.sha256 is None:  # it is new, or from before there were any
        return None
    newest = training_file(path)
    trouble = None
    for file in (newest, files.previous(newest)):
        if not file.is_file():
            continue
        try:
            return TrainingState.read(file, avatar.sha256, avatar.model)
        except UserError as error:
            trouble = trouble or str(error)
    if trouble is not None:
        log.warning("%s; learning goes on from the avatar alone", trouble)
    return None

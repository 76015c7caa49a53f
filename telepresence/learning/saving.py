"""Saving of an avatar with its training state in the background, so that training never waits for the disk.

What is saved was copied when it was published and is not written to afterwards.  A short-lived thread copies it from
the device, hashes it and writes ``avatar.safetensors`` and ``avatar.training.safetensors``; the previous version of
both files is kept.  A training file names the avatar that it belongs to and is written first: if the process is killed
at any moment, a matching pair remains.
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

    from insta_runtime.avatar import Avatar, AvatarContents
    from insta_runtime.learn.trainer_interface import Trainer
    from insta_runtime.learn.training_state import TrainingState
    from telepresence.learning.frame_archive import FrameArchive

log = logging.getLogger("telepresence")

SAVE_TIME_SHARE: Final = 0.05
"""Maximum fraction of time spent on saving; on a slow disk avatars are saved less often than configured."""
RETRY_S: Final = 60.0
"""Seconds before the next attempt after a save that failed, for example because the disk is full."""


def training_file(path: Path) -> Path:
    """Path of the file with the training state that belongs to the avatar at ``path``."""
    from insta_runtime.avatar import avatar_file

    return avatar_file(path).with_suffix(".training.safetensors")


@dataclass(frozen=True)
class SavePoint:
    """Avatar and training state of one moment, ready to be written.

    ``record`` are the contents of the avatar file; ``written`` are the CUDA events after which the tensors are complete
    (empty on a CPU).
    """

    record: AvatarContents
    training: TrainingState
    written: tuple[torch.cuda.Event, ...] = ()

    @staticmethod
    def of(record: AvatarContents, training: TrainingState, trainer: Trainer) -> SavePoint:
        """Create a save point of tensors that were copied on the current CUDA stream and on that of ``trainer``."""
        device = trainer.model.device
        if device.type != "cuda":
            return SavePoint(record, training)
        import torch

        with trainer.on_stream():
            learned = torch.cuda.current_stream(device).record_event()
        return SavePoint(record, training, (learned, torch.cuda.current_stream(device).record_event()))


class AvatarWriter:
    """Writes save points of one avatar to disk on a background thread, one at a time.  Used by the training thread.

    Attributes:
        path: path of the avatar.
        every_s: minimum seconds between two saves.
        archive: archive of training frames that is written with each save; None without one.
        steps: training steps of the avatar saved last, or as loaded.
        sha256: checksum of the avatar saved last; None before the first save.
        saved_at: monotonic second of the last attempt to save, or of creation.
        error: error message of the last attempt; None if it succeeded.
    """

    def __init__(self, path: Path, avatar: Avatar, every_s: float, archive: FrameArchive | None = None) -> None:
        """``avatar`` supplies the number of steps already saved, and whether its file was damaged."""
        self.path, self.steps, self.every_s, self.archive = path, avatar.steps, every_s, archive
        self._spoilt = avatar.spoilt  # a damaged file must not replace the intact previous one
        self.sha256: str | None = None
        self.error: str | None = None
        self.saved_at = time.monotonic()
        self._due = self.saved_at + every_s
        self._thread: threading.Thread | None = None
        self._stream: torch.cuda.Stream | None = None  # shared by all saves: CUDA caches memory per stream

    def due(self, now: float) -> bool:
        """Whether the next save is due at monotonic second ``now`` and none is running."""
        return now >= self._due and not self._busy()

    def start(self, save: SavePoint) -> None:
        """Start writing ``save`` on a background thread; first waits for a save that is still running."""
        self.finish()
        self._due = time.monotonic() + self.every_s
        self._thread = threading.Thread(target=self._run, args=(save,), name="save")
        self._thread.start()

    def finish(self) -> None:
        """Wait until the running save, if any, has succeeded or failed."""
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
            self.error = None
        except UserError as error:
            self.error = str(error)
        except Exception as error:  # for example a lost GPU, which training reports as well
            log.debug("saving failed", exc_info=True)
            self.error = f"the avatar cannot be saved: {type(error).__name__}: {error}"
        self.saved_at = time.monotonic()
        took = self.saved_at - began
        wait = RETRY_S if self.error is not None else max(self.every_s, took / SAVE_TIME_SHARE)
        self._due = began + wait

    def _write(self, save: SavePoint) -> str:
        if not save.written:
            return write_save_point(self.path, save, keep=not self._spoilt)
        import torch

        stream = self._stream = self._stream or torch.cuda.Stream()
        for event in save.written:
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            return write_save_point(self.path, save, keep=not self._spoilt)


def write_save_point(path: Path, save: SavePoint, *, keep: bool) -> str:
    """Write training state and avatar to ``path`` and return the SHA-256 checksum of the avatar.

    ``keep``: whether to keep the replaced files as the previous version.  UserError if the files cannot be written;
    then the old ones stay.
    """
    sha256 = files.seal_of(save.record.header, save.record.tensors)
    files.write(training_file(path), *save.training.file_contents(sha256), keep=keep)
    return save.record.write(path, keep=keep)


def load_training_state(path: Path, avatar: Avatar) -> TrainingState | None:
    """Read the training state that was saved with ``avatar`` at ``path``.

    None if there is none; if the file is damaged or belongs to another avatar, that is logged as a warning.
    """
    from insta_runtime.learn.training_state import TrainingState

    if avatar.sha256 is None:  # a new avatar, or a file from before training states were saved
        return None
    newest = training_file(path)
    problem = None
    for file in (newest, files.previous(newest)):
        if not file.is_file():
            continue
        try:
            return TrainingState.read(file, avatar.sha256, avatar.model)
        except UserError as error:
            problem = problem or str(error)
    if problem is not None:
        log.warning("%s; training continues from the avatar alone", problem)
    return None

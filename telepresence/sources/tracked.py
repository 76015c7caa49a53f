"""A tracked folder as a camera: its pictures in a loop, at their own rate, each with what was tracked in it."""

from __future__ import annotations

from pathlib import Path

from insta_runtime.tracked import TrackedFolder
from telepresence.runtime.frames import CameraFrame, Truth
from telepresence.sources.live import LivePace
from telepresence.sources.source import Identity


class TrackedSource:
    """Plays a tracked folder like a live camera.  Needs no codec and no tracker, only Pillow.

    Pictures are decoded when they are due, which costs about what a webcam's would.  Where no face was tracked, the
    picture comes without its truth.  A picture that is damaged raises UserError from `read`.

    Attributes:
        seconds: of one round. played: only the first so many pictures; the others are never shown.
    """

    def __init__(self, path: Path, played: int | None = None) -> None:
        self._folder = TrackedFolder.open(path)
        self.name = Path(path).name
        self.fps = self._folder.take.fps
        self.played = len(self._folder) if played is None else min(played, len(self._folder))
        self.seconds = self.played / self.fps
        self._pace = LivePace(self.fps)

    @property
    def identity(self) -> Identity:
        """Who was tracked."""
        calibration = self._folder.meta.get("calibration")
        take = self._folder.take
        return Identity(take.head_sha256, take.shape, calibration if isinstance(calibration, str) else None)

    def read(self, timeout: float) -> CameraFrame | None:
        due = self._pace.wait(timeout)
        return self.frame(*due) if due is not None else None

    def frame(self, number: int, t_capture_ns: int) -> CameraFrame:
        """Picture ``number`` of an endless playing, as if captured then.  UserError if it cannot be read."""
        index, folder = number % self.played, self._folder
        if not folder.take.valid[index]:
            return CameraFrame(number, t_capture_ns, folder.picture(index))
        seen = folder.observation(index)
        truth = Truth(seen.state.at(t_capture_ns), seen.alpha, seen.camera, seen.body, folder.take.shape)
        return CameraFrame(number, t_capture_ns, seen.rgb, truth)

    def close(self) -> None:
        """Nothing to release: every picture was closed when it was read."""

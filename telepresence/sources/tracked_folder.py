"""A tracked folder as a camera: its frames in a loop at their own rate, each with its tracked state as ground truth."""

from __future__ import annotations

from pathlib import Path

from insta_runtime.tracked import TrackedFolder
from telepresence.runtime.frames import CameraFrame, GroundTruth
from telepresence.sources.playback_clock import PlaybackClock
from telepresence.sources.source import SourceIdentity


class TrackedSource:
    """Plays a tracked folder like a live camera; needs only Pillow, no codec and no tracker.

    Frames are decoded when they are due.  A frame in which no face was tracked has no ground truth.  A damaged frame
    raises UserError from `read`.

    Attributes:
        seconds: duration of one round.
        played: number of frames that are played, from the start; the others are never shown.
    """

    def __init__(self, path: Path, played: int | None = None) -> None:
        self._folder = TrackedFolder.open(path)
        self.name = Path(path).name
        self.fps = self._folder.take.fps
        self.played = len(self._folder) if played is None else min(played, len(self._folder))
        self.seconds = self.played / self.fps
        self._pace = PlaybackClock(self.fps)

    @property
    def identity(self) -> SourceIdentity:
        """Identity of the tracked subject."""
        calibration = self._folder.meta.get("calibration")
        take = self._folder.take
        return SourceIdentity(take.head_sha256, take.shape, calibration if isinstance(calibration, str) else None)

    def read(self, timeout: float) -> CameraFrame | None:
        """Next frame when it is due; None after ``timeout`` seconds.  Raises UserError if it cannot be read."""
        due = self._pace.wait(timeout)
        return self.frame(*due) if due is not None else None

    def frame(self, number: int, t_capture_ns: int) -> CameraFrame:
        """Frame ``number`` of the endless loop, with capture time ``t_capture_ns``.  Raises UserError if unreadable."""
        index, folder = number % self.played, self._folder
        if not folder.take.valid[index]:
            return CameraFrame(number, t_capture_ns, folder.picture(index))
        seen = folder.observation(index)
        truth = GroundTruth(seen.state.at(t_capture_ns), seen.alpha, seen.camera, seen.body, folder.take.shape)
        return CameraFrame(number, t_capture_ns, seen.rgb, truth)

    def close(self) -> None:
        """There is nothing to release: image files are closed after reading."""

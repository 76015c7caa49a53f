"""One person before one camera: the source, the tracker, what is being learned, and how the session stands."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from insta_runtime.errors import UserError
from telepresence.clock import now_ns
from telepresence.frames import CameraFrame, TrackedFrame
from telepresence.learner import Learner
from telepresence.session import Session

if TYPE_CHECKING:
    from insta_runtime.types import Camera, HeadState
    from telepresence.sources import Source
    from telepresence.tracking.tracker import Tracker

log = logging.getLogger("telepresence")

RETRY_S: Final = 2.0
"""Seconds between attempts to open a camera that failed."""
SILENT_NS: Final = 1_000_000_000
"""A camera that gave no picture for so long gives none."""


@dataclass(frozen=True)
class Pose:
    """A tracked state and the camera that it is seen by."""

    state: HeadState
    camera: Camera


class Person:
    """Belongs to the daemon; every thread touches only its own part.

    Capture calls `read`, tracking sets ``tracked`` and ``pose``, training sets ``learner``, the supervisor
    ``session``.  ``trouble`` is the line that says why the camera gives no pictures, ``seen`` whether it ever did.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        reopen: Callable[[], Source],
        tracker: Tracker,
        path: Path,
        report: Callable[[str | None], None],
    ) -> None:
        """Takes over ``source`` and ``tracker``; the avatar belongs at ``path``.

        ``reopen`` opens the camera again after it failed; ``report`` hears of failures, and None once it works.
        """
        self.name, self.tracker, self.path = name, tracker, path
        self.session = Session()
        self.began = time.monotonic()
        self.learner: Learner | None = None
        self.tracked: TrackedFrame | None = None
        self.pose: Pose | None = None
        self.seen = False
        self.trouble: str | None = None
        self._source: Source | None = source
        self._reopen, self._report = reopen, report
        self._retry_at = 0.0
        self._read_ns = 0

    def read(self, timeout: float) -> CameraFrame | None:
        """The next camera frame; a camera that fails is reported and opened again until it works."""
        try:
            if self._source is None:
                if time.monotonic() < self._retry_at:
                    time.sleep(min(timeout, 0.1))
                    return None
                self._source = self._reopen()
                self.trouble = None
                self._report(None)
            frame = self._source.read(timeout)
        except UserError as error:
            self._lose(error)
            return None
        if frame is not None:
            self.seen = True
            self._read_ns = now_ns()
        return frame

    def face(self) -> bool:
        """Whether a face is there, as far as is known.

        The newest tracked frame decides, even while a busy tracker (it calibrates, say) has no newer one; but a
        camera that gives no pictures shows no face.
        """
        tracked = self.tracked
        if tracked is None or now_ns() - self._read_ns > SILENT_NS:
            return False
        return tracked.observation is not None or self.tracker.state == "calibrating"

    def close(self) -> None:
        """Release the camera and the tracker."""
        if self._source is not None:
            self._source.close()
        self.tracker.close()

    def _lose(self, error: UserError) -> None:
        self.trouble = str(error)
        self._report(self.trouble)
        log.warning("%s", error)
        if self._source is not None:
            self._source.close()
            self._source = None
        self._retry_at = time.monotonic() + RETRY_S

"""Reading frames from a camera, and reopening the camera after it failed or stopped sending frames."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from insta_runtime.errors import UserError
from telepresence.runtime.clock import CaptureClock, now_ns
from telepresence.runtime.failure_policy import POLICIES, Condition, Health, one_line
from telepresence.runtime.ownership import any_thread, owned_by

if TYPE_CHECKING:
    from telepresence.runtime.frames import CameraFrame
    from telepresence.runtime.telemetry import Telemetry
    from telepresence.sources import Source

log = logging.getLogger("telepresence")

CAMERA: Final = POLICIES["camera"]
"""Restart policy for a camera that fails or stops sending frames."""
SILENT_NS: Final = 1_000_000_000
"""Nanoseconds without a frame after which a camera counts as silent."""


@dataclass(frozen=True)
class CameraStatus:
    """State of a camera at one moment.

    Attributes:
        has_frames: whether the camera has ever sent a frame.
        error: why the camera sends no frames now; None if it works.
        last_error: why the camera failed last, even if it works again; None if it never failed.
        read_ns: monotonic time (ns) of the newest frame; before the first frame, that of opening the camera.
        silent_ns: monotonic time (ns) of the newest frame, reopening or return into use; silence is counted from it.
        restarts: number of times that the camera was reopened.
        wrong_times: number of frames whose capture time was impossible and was replaced by the arrival time.
    """

    has_frames: bool
    error: str | None
    last_error: str | None
    read_ns: int
    silent_ns: int
    restarts: int = 0
    wrong_times: int = 0

    def health(self) -> Health:
        """Health of the camera in the form of a daemon stage: running, or restarting while it has an error."""
        condition = Condition.RUNNING if self.error is None else Condition.RESTARTING
        return Health(condition, (now_ns() - self.silent_ns) / 1e9, self.restarts, self.last_error)

    @property
    def silent(self) -> bool:
        """Whether the newest frame is older than `SILENT_NS`."""
        return now_ns() - self.read_ns > SILENT_NS


@owned_by("capture")
class CameraReader:
    """Reads the frames of one source; a source that fails or stops sending is reported and reopened until it works.

    Attributes:
        status: newest state of the camera; replaced whole, so that every thread may read it.
    """

    def __init__(self, name: str, source: Source, reopen: Callable[[], Source], telemetry: Telemetry) -> None:
        """Takes ownership of ``source``, which ``reopen`` opens again after a failure.

        ``name`` appears in messages; failures are reported to ``telemetry`` under the key "source".
        """
        self.status = CameraStatus(False, None, None, now_ns(), now_ns())
        self._name = name
        self._source: Source | None = source
        self._reopen, self._telemetry = reopen, telemetry
        self._retry_at = 0.0
        self._called_ns = now_ns()
        self._clock = CaptureClock()

    def read(self, timeout: float) -> CameraFrame | None:
        """The next camera frame; None if none arrives within ``timeout`` seconds or the camera fails.  Never raises
        an error of the camera."""
        if now_ns() - self._called_ns > SILENT_NS:  # another camera was used meanwhile
            self._update(silent_ns=now_ns())
        self._called_ns = now_ns()
        try:
            if self._source is None:
                if time.monotonic() < self._retry_at:
                    time.sleep(min(timeout, 0.1))
                    return None
                self._source = self._reopen()
                self._update(restarts=self.status.restarts + 1, silent_ns=now_ns())
            frame = self._source.read(timeout)
        except (UserError, OSError) as error:
            self._lose(str(error) or one_line(error))
            return None
        if frame is None:
            silent_s = (now_ns() - self.status.silent_ns) / 1e9
            # The camera of a browser may end without notice: that is no fault.
            if self._name != "browser" and silent_s > CAMERA.silent_s:
                self._lose(f"{self._name} has sent no frame for {silent_s:.0f} s; it is opened again")
            return None
        arrived = now_ns()
        if self.status.error is not None:
            self._telemetry.report("source", None)
            log.info("%s sends frames again", self._name, extra={"event": "camera_back", "stage": "capture"})
        self._update(has_frames=True, error=None, read_ns=arrived, silent_ns=arrived)
        return self._with_valid_time(frame, arrived)

    @any_thread
    def close(self) -> None:
        """Release the camera, once the capture thread no longer uses it."""
        if self._source is not None:
            self._source.close()

    def _with_valid_time(self, frame: CameraFrame, arrived: int) -> CameraFrame:
        """``frame`` with its arrival time (ns) as capture time if its own is impossible."""
        before = self._clock.wrong
        stamp = self._clock.stamp(frame.t_capture_ns, arrived)
        if self._clock.wrong == before:
            return frame
        self._update(wrong_times=self._clock.wrong)
        if before == 0:
            log.warning(
                "the capture times of %s are impossible; the arrival times are used instead",
                self._name,
                extra={"event": "capture_clock", "stage": "capture"},
            )
        return replace(frame, t_capture_ns=stamp)

    def _lose(self, text: str) -> None:
        self._update(error=text, last_error=text)
        self._telemetry.report("source", text)
        if self._source is not None:
            self._source.close()
            self._source = None
        self._retry_at = time.monotonic() + CAMERA.pauses[-1]

    def _update(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]

"""Run the daemon with numbers and times drawn into its output frames.

    python tools/call_figures/frame_stamping.py JOURNAL run --source synthetic

Two methods of the daemon are wrapped.  `CameraReader.read`: the number in a camera frame (`barcode`) is remembered.
`MediaServer.push_frame`: the time of the call and the number of the camera frame that is shown are drawn into the
output frame.  JOURNAL receives one JSON line for each output frame, and the daemon's threads once a second.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from telepresence.runtime.frames import CameraFrame, OutputFrame

TOOLS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]

import telepresence  # noqa: E402, F401 - first: it sets variables that numpy reads when it is imported
from call_figures import barcode  # noqa: E402 - found on the path that was set above

REMEMBERED: Final = 300
"""Number of camera frames whose numbers are kept: those of ten seconds."""

THREADS_EVERY: Final = 30
"""Output frames between two lists of the threads in the journal."""


class FrameStamper:
    """Draws numbers and times into output frames, and writes the journal."""

    def __init__(self, journal: IO[str]) -> None:
        self._journal = journal
        self._numbers: OrderedDict[int, int] = OrderedDict()  # numbers of camera frames, by capture time
        self._shown = 0

    def on_camera_frame(self, frame: Any) -> Any:
        """Remember the number in a camera frame, if there is one; returns the frame."""
        if frame is not None and (number := barcode.read(frame.rgb, barcode.CAMERA_FRAME)) is not None:
            self._numbers[frame.t_capture_ns] = number
            if len(self._numbers) > REMEMBERED:
                self._numbers.popitem(last=False)
        return frame

    def stamped(self, frame: Any) -> Any:
        """A copy of an output frame with both strips; writes the line of the journal."""
        rgb = frame.rgb.copy()
        if (number := self._numbers.get(frame.t_capture_ns)) is not None:
            barcode.write(rgb, barcode.SOURCE_FRAME, number)
        now = time.monotonic_ns()
        began = frame.render_inputs.at if frame.render_inputs is not None else None
        self._write({"shown_ns": now, "captured_ns": frame.t_capture_ns, "drawn_at": began, "avatar": frame.is_avatar})
        if self._shown % THREADS_EVERY == 0:
            self._write({"threads": {thread.native_id: thread.name for thread in threading.enumerate()}})
        self._shown += 1
        barcode.write(rgb, barcode.SENT_TIME, time.time_ns() // 100_000)
        return replace(frame, rgb=rgb)

    def _write(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


def install(journal: IO[str]) -> None:
    """Wrap the two methods, so that every daemon of this process stamps its frames."""
    from telepresence.call.camera_reader import CameraReader
    from telepresence.streaming import MediaServer

    stamper, read, push = FrameStamper(journal), CameraReader.read, MediaServer.push_frame

    def read_frame(reader: CameraReader, timeout: float) -> CameraFrame | None:
        frame: CameraFrame | None = stamper.on_camera_frame(read(reader, timeout))
        return frame

    def push_frame(server: MediaServer, frame: OutputFrame) -> None:
        push(server, stamper.stamped(frame))

    CameraReader.read = read_frame  # type: ignore[method-assign, assignment]
    MediaServer.push_frame = push_frame  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    import telepresence.__main__ as program

    with Path(sys.argv[1]).open("w", encoding="utf-8") as lines:
        install(lines)
        sys.argv[:2] = ["telepresence"]
        program.main()

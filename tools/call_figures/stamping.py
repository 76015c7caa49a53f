"""The command line of the daemon, with pictures that tell when they were made.

    python tools/call_figures/stamping.py JOURNAL run --source synthetic

It is the real daemon but for two methods.  What `MediaServer.show` is given gets the time of that moment and the number
of the camera's picture that it belongs to (`barcode`); the number is read where `Person.read` gives out the camera's
picture.  JOURNAL gets a line of JSON for every picture shown, and now and then the threads.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

TOOLS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]

import telepresence  # noqa: E402, F401 - first: it sets what numpy reads when it is imported
from call_figures import barcode  # noqa: E402 - only now can it be found

REMEMBERED = 300  # camera pictures whose numbers are kept: ten seconds
THREADS_EVERY = 30  # pictures shown


class Stamps:
    """Writes numbers into what is shown, and the journal."""

    def __init__(self, journal: IO[str]) -> None:
        self._journal = journal
        self._numbers: OrderedDict[int, int] = OrderedDict()  # of camera pictures, by capture time
        self._shown = 0

    def camera(self, frame: Any) -> Any:
        """Remember the number in a camera's picture, if there is one."""
        if frame is not None and (number := barcode.read(frame.rgb, barcode.FILMED)) is not None:
            self._numbers[frame.t_capture_ns] = number
            if len(self._numbers) > REMEMBERED:
                self._numbers.popitem(last=False)
        return frame

    def shown(self, frame: Any) -> Any:
        """``frame`` with its numbers."""
        rgb = frame.rgb.copy()
        if (number := self._numbers.get(frame.t_capture_ns)) is not None:
            barcode.write(rgb, barcode.SOURCE, number)
        now = time.monotonic_ns()
        began = frame.drawn.at if frame.drawn is not None else None
        self._write({"shown_ns": now, "captured_ns": frame.t_capture_ns, "drawn_at": began, "avatar": frame.is_avatar})
        if self._shown % THREADS_EVERY == 0:
            self._write({"threads": {thread.native_id: thread.name for thread in threading.enumerate()}})
        self._shown += 1
        barcode.write(rgb, barcode.SHOWN, time.time_ns() // 100_000)
        return replace(frame, rgb=rgb)

    def _write(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


def stamp(journal: IO[str]) -> None:
    """Let every daemon of this process stamp its pictures."""
    from telepresence.call.camera_session import Person
    from telepresence.streaming import MediaServer

    stamps, read, show = Stamps(journal), Person.read, MediaServer.show
    Person.read = lambda person, timeout: stamps.camera(read(person, timeout))  # type: ignore[method-assign]
    MediaServer.show = lambda server, frame: show(server, stamps.shown(frame))  # type: ignore[method-assign]


if __name__ == "__main__":
    import telepresence.__main__ as program

    with Path(sys.argv[1]).open("w", encoding="utf-8") as lines:
        stamp(lines)
        sys.argv[:2] = ["telepresence"]
        program.main()

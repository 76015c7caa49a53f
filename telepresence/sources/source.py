"""What every source of pictures can do."""

from __future__ import annotations

from typing import Protocol

from telepresence.frames import CameraFrame


class Source(Protocol):
    """A live camera, real or not.

    ``name`` is what a person calls it, ``fps`` its nominal rate.  ``read`` returns the newest picture that
    this reader has not had yet, or None after ``timeout`` seconds; pictures that nobody read in time are
    dropped, never queued.  Time stamps are `time.monotonic_ns` and grow.  A source that ends for good (camera
    unplugged) raises UserError from ``read``.  ``close`` may be called twice.
    """

    name: str
    fps: float

    def read(self, timeout: float) -> CameraFrame | None: ...

    def close(self) -> None: ...

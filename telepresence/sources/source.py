"""What every source of pictures can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from insta_runtime.types import Float32
from telepresence.runtime.frames import CameraFrame


@dataclass(frozen=True)
class Identity:
    """Who is before a camera: identity code ``shape`` (S,) of the head model whose file hash is ``head_sha256``.

    ``calibration`` is what tracking learned of person and camera, as JSON; None of exact states.
    """

    head_sha256: str
    shape: Float32
    calibration: str | None = None


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


@runtime_checkable
class Informed(Protocol):
    """A source that knows who is before it; its pictures carry their `Truth`, so that nobody needs to track them."""

    @property
    def identity(self) -> Identity: ...

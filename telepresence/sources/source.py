"""Interfaces of a source of camera frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from insta_runtime.types import Float32
from telepresence.runtime.frames import CameraFrame


@dataclass(frozen=True)
class SourceIdentity:
    """Identity of the subject that a source shows: identity code ``shape`` (S,) for the head model ``head_sha256``.

    ``calibration`` is the subject's calibration as JSON; None if the head states are exact.
    """

    head_sha256: str
    shape: Float32
    calibration: str | None = None


class Source(Protocol):
    """A camera, or a recording that is played like one.

    ``name`` is its display name, ``fps`` its nominal frame rate.  Frames that are not read in time are dropped and
    never queued.  Capture times are on the clock `time.monotonic_ns` and increase.  A source that ends (camera
    unplugged) raises UserError from `read`.  `close` can be called twice.
    """

    name: str
    fps: float

    def read(self, timeout: float) -> CameraFrame | None:
        """Newest frame that was not read yet; None after ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """Release the device or file."""
        ...


@runtime_checkable
class GroundTruthSource(Protocol):
    """A source with a known subject; its frames carry their `GroundTruth` and need no tracking."""

    @property
    def identity(self) -> SourceIdentity:
        """Identity of the subject."""
        ...

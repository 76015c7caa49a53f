"""Settings of the video encoder, as a protocol that `StreamSettings` implements."""

from __future__ import annotations

from typing import Protocol


class VideoSettings(Protocol):
    """Settings of the video encoder: frame size, frame rate, bitrate, and the H.264 encoder with its preset.

    ``size``: side of the square frames, px.  ``fps``: frames a second.  ``bitrate``: maximum, kbit/s.  ``encoder``:
    ``auto``, ``x264`` or ``nvenc``.  ``preset``: that of x264.
    """

    @property
    def size(self) -> int: ...

    @property
    def fps(self) -> int: ...

    @property
    def bitrate(self) -> int: ...

    @property
    def encoder(self) -> str: ...

    @property
    def preset(self) -> str: ...

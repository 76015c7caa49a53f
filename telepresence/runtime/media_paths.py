"""Paths of media files for FFmpeg, which would read some names as protocols."""

from __future__ import annotations

from pathlib import Path


def media_target(path: Path) -> str:
    """Address to pass to ``av.open`` so that exactly the file at ``path`` is read or written.

    FFmpeg takes ``2024-05-01T12:30:00.mp4`` or ``pipe:1.mp4`` for an address of a protocol, so the protocol is named.
    """
    return f"file:{path}"

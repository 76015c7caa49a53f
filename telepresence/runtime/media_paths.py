"""Paths of media files for FFmpeg, which would read some names as protocols."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, Literal


def media_target(path: Path, mode: Literal["r", "w"] = "r") -> str | IO[bytes]:
    """What to pass to ``av.open`` so that exactly the file at ``path`` is read (``r``) or written (``w``).

    FFmpeg takes ``2024-05-01T12:30:00.mp4`` or ``pipe:1.mp4`` for an address of a protocol, so the protocol is named.
    A name that is not UTF-8 cannot be passed to it at all: that file is opened here, and read through Python.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        stream: Any = path.open(f"{mode}b", buffering=0)
        return stream
    return f"file:{path}"

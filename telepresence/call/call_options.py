"""Options of one call that are given on the command line instead of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CallOptions:
    """Options of one call that are given on the command line, besides the configuration.

    Attributes:
        source: camera source, as given by ``--source`` (a device, a file, ``synthetic`` or ``browser``).
        avatar: folder of the avatar; None creates a new one in the user's data folder.
        head: head model file; None takes the open head model.
        models: folder of MediaPipe's model files; None downloads them.
        track: track the images even of a source that supplies ground-truth head states.
        preview: whether to open a preview window.
        record: path of the video file to record the call in; None records nothing.
        virtual_camera: whether to send the frames to a virtual camera of the operating system.
    """

    source: str
    avatar: Path | None = None
    head: Path | None = None
    models: Path | None = None
    track: bool = False
    preview: bool = False
    record: Path | None = None
    virtual_camera: bool = False

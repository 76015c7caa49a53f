"""Options of one call that are given on the command line instead of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CallOptions:
    """Options of one call besides the configuration.

    Attributes:
        source: camera source, as given by ``--source`` (a device, a file, ``synthetic`` or ``browser``).
        avatar: folder of the avatar; None creates a new one in the user's data folder.
        head: head model file; None takes the open head model.
        models: folder of MediaPipe's model files; None: the user's cache, into which missing files are downloaded.
        track: track a source that gives ground truth, too.
        preview: open a preview window.
        record: path of a recording of the call.
        virtual_camera: feed a virtual camera of the operating system.
    """

    source: str
    avatar: Path | None = None
    head: Path | None = None
    models: Path | None = None
    track: bool = False
    preview: bool = False
    record: Path | None = None
    virtual_camera: bool = False

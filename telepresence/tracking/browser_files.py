"""The files with which a browser tracks faces itself: MediaPipe's package for browsers, and the landmarker's model.

The package comes from the npm registry once, as `models` has it, and is read where it lies; no file of it is ever
unpacked.  Version 0.10.35 is the last line that keeps what it sees and measures to itself: from 1.0 on the package
reports to its vendor.
"""

from __future__ import annotations

import tarfile
import threading
from pathlib import Path
from typing import Final

from insta_runtime.errors import UserError

from .models import landmarker_path, vision_path

PACKED: Final = {
    "vision.js": "package/vision_bundle.mjs",
    "loader.js": "package/wasm/vision_wasm_module_internal.js",
    "vision.wasm": "package/wasm/vision_wasm_module_internal.wasm",
}
MODEL: Final = "model.task"

_lock = threading.Lock()
_read: dict[str, bytes] = {}


def vision_file(name: str, models: Path | None = None) -> bytes:
    """``vision.js``, ``loader.js``, ``vision.wasm`` or ``model.task``.

    What is not there is downloaded first, which takes a while.  UserError where it is not to be had, KeyError for any
    other name.
    """
    if name == MODEL:
        return landmarker_path(models).read_bytes()
    if name not in PACKED:
        raise KeyError(name)
    with _lock:
        if not _read:
            path = vision_path(models)
            try:
                with tarfile.open(path) as package:
                    _read.update({file: _member(package, PACKED[file]) for file in PACKED})
            except (OSError, tarfile.TarError, KeyError) as error:
                raise UserError(f"{path} cannot be read ({error}): delete it, a good one is fetched") from None
        return _read[name]


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()

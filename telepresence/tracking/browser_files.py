"""Files that a web page needs to track faces: MediaPipe's npm package and the face landmarker's model.

The package is downloaded once from the npm registry by `model_files` and read from the archive; nothing is unpacked.
Version 0.10.35 is used because versions from 1.0 on report usage to the vendor.
"""

from __future__ import annotations

import tarfile
import threading
from pathlib import Path
from typing import Final

from insta_runtime.errors import UserError

from .model_files import landmarker_path, vision_path

PACKED: Final = {
    "vision.js": "package/vision_bundle.mjs",
    "loader.js": "package/wasm/vision_wasm_module_internal.js",
    "vision.wasm": "package/wasm/vision_wasm_module_internal.wasm",
}
"""File names served to a browser, mapped to the paths of their content in MediaPipe's npm package."""
MODEL: Final = "model.task"
"""File name under which the face landmarker's model is served to a browser."""

_lock = threading.Lock()
_read: dict[str, bytes] = {}


def vision_file(name: str, models: Path | None = None) -> bytes:
    """Content of ``vision.js``, ``loader.js``, ``vision.wasm`` or ``model.task``; missing files are downloaded first.

    ``models`` is a folder that is searched before the cache; None: the environment variable ``TELEPRESENCE_MODELS``.
    Raises UserError if a file is not available, and KeyError for any other name.
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
                raise UserError(f"{path} cannot be read ({error}): delete it, and it is downloaded again") from None
        return _read[name]


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()

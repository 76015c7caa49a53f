"""Loading of head models from files."""

from __future__ import annotations

import hashlib
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError
from insta_runtime.head.flame import flame_model
from insta_runtime.head.model import HeadModel
from insta_runtime.head.open_head import OPEN_HEAD, open_head_model
from insta_runtime.head.pickles import read_pickle

LARGEST = 1 << 30
"""Maximum size in bytes of a head model file."""


def load_head(path: Path | None = None) -> HeadModel:
    """Load a head model from ``path``: a FLAME ``.pkl`` or ``.npz``, or an open head; None for the open default head.

    Raises UserError if the file cannot be read, is not a head model, or contains executable pickle objects.
    """
    path = OPEN_HEAD if path is None else path
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is too large to be a head model")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the head model {path}: {error.strerror or error}") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if not data.startswith(b"PK"):
        if path.suffix.lower() != ".pkl":
            raise UserError(f"{path} is not a head model; give a FLAME .pkl or .npz file, or none for the open head")
        return flame_model(read_pickle(path), str(path), sha256)
    arrays = _read_npz(path, data)
    read = open_head_model if "meta" in arrays else flame_model
    return read(arrays, str(path), sha256)


def _read_npz(path: Path, data: bytes) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError):
        raise UserError(f"{path} is not a readable npz of plain arrays; give a FLAME .pkl or .npz file") from None

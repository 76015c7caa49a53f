"""One door for every head file."""

from __future__ import annotations

from pathlib import Path

from insta_runtime.head.model import HeadModel
from insta_runtime.head.open_head import read_open_head


def load_head(path: Path | None = None) -> HeadModel:
    """The head in ``path``: None for the open default head."""
    if path is None:
        return read_open_head()
    raise NotImplementedError

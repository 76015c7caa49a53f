"""Finding of a probe of the machine, as `telepresence doctor` prints it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """One line of `telepresence doctor`.

    Attributes:
        topic: what was checked. found: what was found.
        ok: True if it works, False if it must be fixed, None if only some uses of the program need it.
        advice: how to fix it; empty if there is nothing to do.
    """

    topic: str
    found: str
    ok: bool | None = True
    advice: str = ""


Probe = Callable[[], Iterator[Finding]]
"""Function that checks one part of the machine and yields its findings."""


def writable(folder: Path) -> bool:
    """Whether files can be written to ``folder``, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)

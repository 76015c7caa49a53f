"""What one look at the machine has shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """What one probe saw: ``ok`` False is something to mend, None something that only matters to some."""

    topic: str
    found: str
    ok: bool | None = True
    advice: str = ""


Probe = Callable[[], Iterator[Finding]]


def writable(folder: Path) -> bool:
    """Whether files can be kept in ``folder``, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)

"""Suppression of the log lines that native libraries write to standard error when they start."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_STDERR_LOCK = threading.RLock()


@contextlib.contextmanager
def silence_native_stderr() -> Iterator[None]:
    """Context manager that discards standard error (file descriptor 2), for libraries whose log cannot be disabled.

    It affects the whole process, so it should enclose only the loading of a model and its first inference.
    """
    with _STDERR_LOCK, Path(os.devnull).open("wb") as nowhere:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

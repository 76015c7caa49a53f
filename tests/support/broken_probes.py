"""Looks at machines of which something is broken."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator

from telepresence.checkup.finding import Finding


def whole() -> Iterator[Finding]:
    yield Finding("whole", "all is well")


def raising() -> Iterator[Finding]:
    yield Finding("half", "so far so good")
    raise RuntimeError("the driver says no")


def crashing() -> Iterator[Finding]:
    yield Finding("never told", "")
    ctypes.string_at(0)


def leaving() -> Iterator[Finding]:
    os._exit(7)
    yield Finding("never told", "")


def hanging() -> Iterator[Finding]:
    time.sleep(600.0)
    yield Finding("never told", "")

"""Probes for the tests of `telepresence doctor`: raising, crashing, leaving or hanging."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator

from telepresence.checkup.finding import Finding


def whole() -> Iterator[Finding]:
    yield Finding("whole", "works")


def raising() -> Iterator[Finding]:
    yield Finding("half", "works so far")
    raise RuntimeError("the driver says no")


def crashing() -> Iterator[Finding]:
    yield Finding("never sent", "")
    ctypes.string_at(0)


def leaving() -> Iterator[Finding]:
    os._exit(7)
    yield Finding("never sent", "")


def hanging() -> Iterator[Finding]:
    time.sleep(600.0)
    yield Finding("never sent", "")

"""System, packages, folders, screen."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from telepresence import __version__
from telepresence.checkup.finding import Finding, writable
from telepresence.runtime.hardware import processor_name

NEEDED: Final = (
    "torch",
    "numpy",
    "safetensors",
    "msgspec",
    "typer",
    "rich",
    "av",
    "aiortc",
    "aiohttp",
    "pyzmq",
    "prometheus-client",
    "platformdirs",
    "pillow",
    "mediapipe",
    "pygame-ce",
    "psutil",
    "jinja2",
)

SYSTEM_LIBRARIES: Final = {  # what mediapipe and its OpenCV link, by Debian package
    "libEGL.so.1": "libegl1",
    "libGLESv2.so.2": "libgles2",
    "libGL.so.1": "libgl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libxcb.so.1": "libxcb1",
}

ROOM_MB: Final = 500
"""What some avatars with their training take."""


def system() -> Iterator[Finding]:
    yield Finding("telepresence", f"{__version__}, in {Path(__file__).resolve().parents[2]}")
    yield Finding("Python", f"{platform.python_version()} at {sys.executable}")
    yield Finding("system", platform.platform())
    yield Finding("processor", f"{processor_name()}, {os.cpu_count()} cores")


def packages() -> Iterator[Finding]:
    versions, missing = [], []
    for name in NEEDED:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("packages", ", ".join(versions))
    if missing:
        yield Finding("packages missing", ", ".join(missing), ok=False, advice=f"pip install {' '.join(missing)}")


def libraries() -> Iterator[Finding]:
    if not sys.platform.startswith("linux"):
        return
    missing = []
    for library, package in SYSTEM_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(package)
    if missing:
        advice = f"real faces need them (the synthetic actor does not): apt-get install {' '.join(missing)}"
        yield Finding("system libraries", f"missing {' '.join(missing)}", ok=False, advice=advice)
    else:
        yield Finding("system libraries", " ".join(SYSTEM_LIBRARIES))


def folders() -> Iterator[Finding]:
    import platformdirs

    folder = Path(platformdirs.user_data_dir("telepresence"))
    if not writable(folder):
        yield Finding("avatars", str(folder), ok=False, advice="name a place for the avatar: run --avatar DIR")
        return
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e6
    advice = "" if free >= ROOM_MB else "make room, or name another place for the avatar: run --avatar DIR"
    yield Finding("avatars", f"{folder}, {free / 1000:.1f} GB free", ok=free >= ROOM_MB, advice=advice)


def preview() -> Iterator[Finding]:
    """Whether a window can be opened: one is, on no screen, so that a broken toolkit shows."""
    if sys.platform.startswith("linux"):
        found = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
        yield Finding("display", found or "none: --preview has no screen to open on", ok=True if found else None)
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    import pygame

    pygame.display.init()
    pygame.Window("doctor", (64, 64)).get_surface()
    pygame.quit()
    sdl = ".".join(map(str, pygame.get_sdl_version()))
    yield Finding("preview", f"pygame-ce {pygame.version.ver}, SDL {sdl}")


def for_tests() -> Iterator[Finding]:
    found = [path for path in map(shutil.which, ("chromium", "Xvfb")) if path]
    complete = len(found) == 2
    advice = "" if complete else "only the tests need them: apt-get install chromium xvfb"
    yield Finding("for the tests", " ".join(found) or "no chromium, no Xvfb", ok=complete or None, advice=advice)

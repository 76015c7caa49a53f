"""Probes of the machine: system, Python packages, system libraries, folders and the screen."""

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
from telepresence.runtime.scratch_folder import abandoned_folders, unreachable_folders

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
    "ai-edge-litert",
    "opencv-python-headless",
    "pygame-ce",
    "psutil",
    "jinja2",
)
"""Names of the Python packages that the program needs."""

SYSTEM_LIBRARIES: Final = {
    "libEGL.so.1": "libegl1",
    "libGLESv2.so.2": "libgles2",
    "libGL.so.1": "libgl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libxcb.so.1": "libxcb1",
}
"""Shared libraries that mediapipe and its OpenCV link to, with the Debian package of each."""

MIN_FREE_MB: Final = 500
"""Free disk space in MB that a few avatars with their training states need."""


def system() -> Iterator[Finding]:
    """Versions of the program, Python and the operating system, and the processor."""
    yield Finding("telepresence", f"{__version__}, in {Path(__file__).resolve().parents[2]}")
    yield Finding("Python", f"{platform.python_version()} at {sys.executable}")
    yield Finding("system", platform.platform())
    yield Finding("processor", f"{processor_name()}, {os.cpu_count()} cores")


def packages() -> Iterator[Finding]:
    """Versions of the Python packages in `NEEDED`, and those that are missing."""
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
    """Whether the shared libraries of `SYSTEM_LIBRARIES` can be loaded (Linux only), if mediapipe is installed."""
    try:
        version = importlib.metadata.version("mediapipe")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("mediapipe", "not installed: needed for run.face_models=mediapipe alone")
        return
    yield Finding("mediapipe", f"{version}: used with run.face_models=mediapipe alone; it reports to its vendor")
    if not sys.platform.startswith("linux"):
        return
    missing = []
    for library, package in SYSTEM_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(package)
    if missing:
        advice = f"mediapipe and its OpenCV need them to track real faces: apt-get install {' '.join(missing)}"
        yield Finding("system libraries", f"missing {' '.join(missing)}", ok=False, advice=advice)
    else:
        yield Finding("system libraries", " ".join(SYSTEM_LIBRARIES))


def folders() -> Iterator[Finding]:
    """Whether avatars can be saved in the default folder, and its free disk space."""
    import platformdirs

    folder = Path(platformdirs.user_data_dir("telepresence"))
    if not writable(folder):
        yield Finding("avatars", str(folder), ok=False, advice="choose another folder for avatars: run --avatar DIR")
        return
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e6
    advice = (
        "" if free >= MIN_FREE_MB else "free some disk space, or choose another folder for avatars: run --avatar DIR"
    )
    yield Finding("avatars", f"{folder}, {free / 1000:.1f} GB free", ok=free >= MIN_FREE_MB, advice=advice)


def unfinished_files() -> Iterator[Finding]:
    """Temporary folders that killed commands have left and that the start of this one could not remove."""
    found = [str(folder.path) for folder in abandoned_folders()]
    advice = "they may show a face: telepresence forget --all, or delete them yourself" if found else ""
    yield Finding("unfinished files", " ".join(found) or "none of killed commands", ok=not found, advice=advice)
    if elsewhere := [str(path) for path in unreachable_folders()]:
        advice = (
            "they may show a face; if the folder was moved, use telepresence forget with the result's new path;"
            " if it belongs to this computer under another name, delete it yourself"
        )
        yield Finding("out of reach", " ".join(elsewhere), ok=False, advice=advice)


def preview() -> Iterator[Finding]:
    """Whether a window can be opened; opens one with SDL's dummy driver, so that a broken toolkit is found."""
    if sys.platform.startswith("linux"):
        found = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
        yield Finding("display", found or "none: --preview cannot open a window", ok=True if found else None)
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    import pygame

    pygame.display.init()
    pygame.Window("doctor", (64, 64)).get_surface()
    pygame.quit()
    sdl = ".".join(map(str, pygame.get_sdl_version()))
    yield Finding("preview", f"pygame-ce {pygame.version.ver}, SDL {sdl}")


def for_tests() -> Iterator[Finding]:
    """Programs that only the tests need: Chromium and Xvfb."""
    found = [path for path in map(shutil.which, ("chromium", "Xvfb")) if path]
    complete = len(found) == 2
    advice = "" if complete else "needed by the tests only: apt-get install chromium xvfb"
    yield Finding("for the tests", " ".join(found) or "no chromium, no Xvfb", ok=complete or None, advice=advice)

"""``telepresence doctor``: what this machine has, what is missing, and what to do about it.

Every probe is guarded: a broken driver or library is a finding, never a traceback.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from telepresence import __version__

NEEDED = (
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
)

SYSTEM_LIBRARIES = {  # what mediapipe and its OpenCV link, by Debian package
    "libEGL.so.1": "libegl1",
    "libGLESv2.so.2": "libgles2",
    "libGL.so.1": "libgl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libxcb.so.1": "libxcb1",
}


@dataclass(frozen=True)
class Finding:
    """What one probe saw: ``ok`` False is something to mend, None something that only matters to some."""

    topic: str
    found: str
    ok: bool | None = True
    advice: str = ""


def doctor(*, models: Path | None = None) -> dict[str, Any]:
    """Print the findings and return them as ``{"version", "findings": [{topic, found, ok, advice}]}``.

    ``models`` is a folder to look for MediaPipe's model files in, before the user's cache.
    """
    from rich.console import Console

    probes: tuple[Callable[[], Iterator[Finding]], ...] = (
        _system,
        _packages,
        _torch,
        _gpu,
        _kernels,
        _head,
        _codec,
        _camera,
        lambda: _models(models),
        _libraries,
        _display,
        _folders,
        _port,
        _browser,
    )
    findings = [finding for probe in probes for finding in _guarded(probe)]
    console = Console(soft_wrap=True, highlight=False)  # addresses and paths stay whole, to be copied
    for finding in findings:
        sign = {True: "[green]ok[/]", False: "[red]--[/]", None: "  "}[finding.ok]
        console.print(f"{sign}  {finding.topic:<18} {_plain(finding.found)}")
        if finding.advice:
            console.print(f"    {'':<18} [yellow]{_plain(finding.advice)}[/]")
    broken = [finding.topic for finding in findings if finding.ok is False]
    console.print(f"To mend: {', '.join(broken)}." if broken else "Nothing is missing that a call needs.")
    return {"version": __version__, "findings": [asdict(finding) for finding in findings]}


def _guarded(probe: Callable[[], Iterator[Finding]]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        for finding in probe():
            findings.append(finding)  # noqa: PERF402 - keeps what was found before a failure
    except Exception as error:  # the doctor's whole purpose
        name = getattr(probe, "__name__", "probe").strip("_")
        findings.append(Finding(name, f"could not be looked at: {type(error).__name__}: {error}", ok=None))
    return findings


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _system() -> Iterator[Finding]:
    yield Finding("telepresence", f"{__version__}, in {Path(__file__).resolve().parents[2]}")
    yield Finding("Python", f"{platform.python_version()} at {sys.executable}")
    yield Finding("system", platform.platform())
    yield Finding("processor", f"{_processor()}, {os.cpu_count()} cores")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _packages() -> Iterator[Finding]:
    versions, missing = [], []
    for name in NEEDED:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("packages", ", ".join(versions))
    if missing:
        yield Finding("packages missing", ", ".join(missing), ok=False, advice=f"pip install {' '.join(missing)}")


def _torch() -> Iterator[Finding]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    yield Finding("torch", f"{torch.__version__} ({build} build), {capability}, {threads} threads")


def _gpu() -> Iterator[Finding]:
    import torch

    driver = _driver()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        yield Finding("GPU", f"{properties.name}, {memory:.0f} GiB, driver {driver or 'unknown'}")
        major = (torch.version.cuda or "13").partition(".")[0]
        package = f"cupy-cuda{major}x"
        try:
            yield Finding("cupy", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("cupy", "absent: torch alone is used", ok=None, advice=f"pip install {package}")
    elif driver and torch.version.cuda is None:
        yield Finding(
            "GPU", f"driver {driver}, but torch is a CPU build", ok=False, advice="make clean setup, or reinstall torch"
        )
    elif driver:
        advice = f"the driver must be able to run CUDA {torch.version.cuda}"
        yield Finding("GPU", f"driver {driver}, but CUDA does not start", ok=False, advice=advice)
    else:
        yield Finding("GPU", "none: the 'cpu' preset is used", ok=None)


def _driver() -> str | None:
    """The version of the NVIDIA driver, None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None


def _kernels() -> Iterator[Finding]:
    """Whether the native back ends can compile here, and what they have compiled.  Compiles nothing."""
    import torch

    from insta_runtime.compilers import cache_folder
    from insta_runtime.constants import avatar_constants
    from insta_runtime.errors import UserError
    from insta_runtime.kernels import Kernels
    from telepresence.config import load_config

    for device, topic in (("cpu", "host kernels"), ("cuda", "cuda kernels")):
        if device == "cuda" and not torch.cuda.is_available():
            yield Finding(topic, "not used: there is no GPU", ok=None)
            continue
        avatar = load_config("default" if device == "cuda" else "cpu").avatar
        try:
            kernels = Kernels(torch.device(device), avatar_constants(avatar))
            modules, compiler = kernels.compiled(), kernels.compiler
        except UserError as error:
            yield Finding(topic, f"plain torch is used: {error}", ok=None)
            continue
        done = [artifact for artifact in modules.values() if artifact]
        seconds = sum(artifact.seconds for artifact in done)
        state = (
            f"{len(done)} of {len(modules)} modules compiled, in {seconds:.0f} s" if done else "compiled at first use"
        )
        yield Finding(topic, f"{compiler}; {state}")
    writable = _writable(cache_folder())
    advice = (
        "" if writable else "kernels are compiled anew in every process: name a folder in TELEPRESENCE_KERNEL_CACHE"
    )
    yield Finding("kernel cache", str(cache_folder()), ok=writable, advice=advice)


def _head() -> Iterator[Finding]:
    from insta_runtime.head import load_head

    head = load_head()
    yield Finding("open default head", f"{head.template.shape[0]} vertices, {head.sha256[:12]}")


def _codec() -> Iterator[Finding]:
    import av
    import numpy as np

    codec = av.CodecContext.create("libx264", "w")
    codec.width = codec.height = 64
    codec.pix_fmt = "yuv420p"
    codec.framerate = 30  # type: ignore[assignment]
    codec.options = {"preset": "ultrafast", "tune": "zerolatency"}
    picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8), format="rgb24").reformat(
        format="yuv420p"
    )
    encodes = any(packet.size for packet in [*codec.encode(picture), *codec.encode(None)])
    verdict = "encodes" if encodes else "does not encode"
    yield Finding("FFmpeg", f"{av.ffmpeg_version_info}, H.264 {verdict}", ok=encodes)


def _camera() -> Iterator[Finding]:
    from telepresence.sources.webcam import default_webcam

    camera = default_webcam()
    if camera:
        yield Finding("camera", camera)
    else:
        advice = "run takes the synthetic actor; or --source file:VIDEO, or the browser's camera on the page"
        yield Finding("camera", "none", ok=None, advice=advice)


def _models(given: Path | None) -> Iterator[Finding]:
    from telepresence.tracking.models import (
        LANDMARKER,
        SEGMENTER,
        SEGMENTER_LANDSCAPE,
        SEGMENTER_SQUARE,
        ModelFile,
        model_cache,
    )

    folders = [folder for folder in (given, model_cache()) if folder is not None]
    kinds: dict[str, tuple[ModelFile, ...]] = {
        "face landmarks": (LANDMARKER,),
        "matte": (SEGMENTER, SEGMENTER_SQUARE, SEGMENTER_LANDSCAPE),
    }
    for topic, files in kinds.items():
        places = [(folder / file.name, file) for folder in folders for file in files]
        path, file = next(((path, file) for path, file in places if path.is_file()), (None, files[0]))
        if path is None:
            place = model_cache() / file.name
            advice = f"fetched at first use; without network put {file.address} at {place}, or name --models DIR"
            yield Finding(topic, f"{file.name} is not here yet", ok=None, advice=advice)
        elif hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
            yield Finding(
                topic, f"{path} is not the expected file", ok=False, advice="delete it: a good one is fetched"
            )
        else:
            yield Finding(topic, str(path))


def _libraries() -> Iterator[Finding]:
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


def _display() -> Iterator[Finding]:
    if sys.platform.startswith("linux"):
        found = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
        yield Finding("display", found or "none: --preview has no screen to open on", ok=True if found else None)


def _folders() -> Iterator[Finding]:
    import platformdirs

    folder = Path(platformdirs.user_data_dir("telepresence"))
    writable = _writable(folder)
    advice = "" if writable else "name a place for the avatar: run --avatar DIR"
    yield Finding("avatars", str(folder), ok=writable, advice=advice)


def _writable(folder: Path) -> bool:
    """Whether files can be kept in ``folder``, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def _port() -> Iterator[Finding]:
    with socket.socket() as probe:
        busy = probe.connect_ex(("127.0.0.1", 8080)) == 0
    advice = "another port with run --port N" if busy else ""
    yield Finding("port 8080", "taken" if busy else "free", ok=None if busy else True, advice=advice)


def _browser() -> Iterator[Finding]:
    found = [path for path in map(shutil.which, ("chromium", "Xvfb")) if path]
    complete = len(found) == 2
    advice = "" if complete else "only the tests need them: apt-get install chromium xvfb"
    yield Finding("for the tests", " ".join(found) or "no chromium, no Xvfb", ok=complete or None, advice=advice)

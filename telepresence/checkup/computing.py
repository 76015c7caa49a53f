"""Probes of computation: torch, the GPU, native kernels and the head model."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections.abc import Iterator

from telepresence.checkup.finding import Finding, writable


def torch_build() -> Iterator[Finding]:
    """Version and build of torch, and the CPU instructions and threads that it uses."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    yield Finding("torch", f"{torch.__version__} ({build} build), {capability}, {threads} threads")


def gpu() -> Iterator[Finding]:
    """The NVIDIA GPU with its driver, and CuPy for the native kernels."""
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
            yield Finding(
                "cupy",
                "not installed: training and rendering use torch alone",
                ok=None,
                advice=f"pip install {package}",
            )
    elif driver and torch.version.cuda is None:
        yield Finding(
            "GPU",
            f"driver {driver}, but torch is a CPU build",
            ok=False,
            advice="run 'make clean setup', or install a CUDA build of torch",
        )
    elif driver:
        advice = f"install an NVIDIA driver that supports CUDA {torch.version.cuda}"
        yield Finding("GPU", f"driver {driver}, but CUDA does not start", ok=False, advice=advice)
    else:
        yield Finding("GPU", "none: the preset 'cpu' is used", ok=None)


def kernels() -> Iterator[Finding]:
    """Compilers of the native backends and the number of kernels compiled so far.  Compiles nothing."""
    import torch

    from insta_runtime.errors import UserError
    from insta_runtime.native.compilers import cache_folder
    from insta_runtime.native.constants import avatar_constants
    from insta_runtime.native.kernels import Kernels
    from telepresence.config import load_config

    for device, topic in (("cpu", "host kernels"), ("cuda", "cuda kernels")):
        if device == "cuda" and not torch.cuda.is_available():
            yield Finding(topic, "not used: no GPU was found", ok=None)
            continue
        avatar = load_config("default" if device == "cuda" else "cpu").avatar
        try:
            native = Kernels(torch.device(device), avatar_constants(avatar))
            modules, compiler = native.compiled(), native.compiler
        except UserError as error:
            yield Finding(topic, f"torch is used instead: {error}", ok=None)
            continue
        done = [artifact for artifact in modules.values() if artifact]
        seconds = sum(artifact.seconds for artifact in done)
        state = (
            f"{len(done)} of {len(modules)} modules compiled, in {seconds:.0f} s" if done else "compiled at first use"
        )
        yield Finding(topic, f"{compiler}; {state}")
    can_write = writable(cache_folder())
    advice = (
        "" if can_write else "kernels are compiled by every process: set TELEPRESENCE_KERNEL_CACHE to a writable folder"
    )
    yield Finding("kernel cache", str(cache_folder()), ok=can_write, advice=advice)


def head_model() -> Iterator[Finding]:
    """The head model that is part of the program."""
    from insta_runtime.head import load_head

    head = load_head()
    yield Finding("open default head", f"{head.template.shape[0]} vertices, {head.sha256[:12]}")


def _driver() -> str | None:
    """Version of the NVIDIA driver; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None

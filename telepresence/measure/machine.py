"""Machine and source commit that a measurement belongs to, and memory, threads and processor time of processes."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from telepresence.runtime.hardware import device_name as device_name
from telepresence.runtime.hardware import gpu_bytes_in_use as gpu_bytes_in_use
from telepresence.runtime.hardware import processor_name
from telepresence.runtime.hardware import resident_bytes as resident_bytes

if TYPE_CHECKING:
    import torch

MEBIBYTE: Final = 1 << 20
"""Bytes of one MiB, the unit of nvidia-smi."""

COMMAND_TIMEOUT_S: Final = 20.0
"""Seconds after which a call of git or nvidia-smi is given up."""


def describe_machine() -> dict[str, Any]:
    """Processor, cores and GPU of this machine, and the versions of Python and torch, for a file of figures."""
    import torch

    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def source_commit() -> str | None:
    """Commit of the checkout that this module is imported from, 12 digits, with ``-dirty`` if its files were changed.

    Outside a checkout, the value of the environment variable TELEPRESENCE_COMMIT; None if that is not set either.
    """
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        described = _output("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--match=")
        if described:
            return described
    return os.environ.get("TELEPRESENCE_COMMIT")


def memory_use_gb(device: torch.device) -> tuple[float, str]:
    """Memory that this process uses, in 10^9 bytes, and in words what was counted.

    On a CPU: resident memory. On a GPU: what nvidia-smi lists for this process; where it lists no processes (as in
    many containers), the memory in use on the whole device.
    """
    if device.type != "cuda":
        return resident_bytes() / 1e9, "resident memory of this process"
    import torch

    torch.cuda.synchronize(device)
    listed = _output("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits") or ""
    for line in listed.splitlines():
        pid, _, mebibytes = (part.strip() for part in line.partition(","))
        if pid == str(os.getpid()) and mebibytes.isdigit():
            return int(mebibytes) * MEBIBYTE / 1e9, "this process, by nvidia-smi"
    return gpu_bytes_in_use(device) / 1e9, "the whole device, by the driver: it does not list processes"


def thread_count() -> int:
    """Number of threads of this process, those that libraries started included."""
    return int(psutil.Process().num_threads())


def thread_cpu_s(process: int | None = None) -> dict[int, float]:
    """Processor seconds (user and system) of each thread of a process, by native thread id; None means this process.

    Empty where the operating system does not report them, and for a process that has ended.
    """
    try:
        return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(process).threads()}
    except psutil.Error:
        return {}


def _output(*command: str) -> str | None:
    """Standard output of a command, stripped; None if it cannot be run or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed programs, no shell
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

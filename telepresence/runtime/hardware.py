"""Names and memory use of the processor and the GPU of this machine."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@cache
def processor_name() -> str:
    """Model name of the processor, e.g. "Intel(R) Xeon(R) Platinum 8488C"; its architecture where Linux lists none."""
    cpuinfo = Path("/proc/cpuinfo")  # neither the standard library nor psutil reads the model name
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Model name of the GPU for a CUDA device, else of the processor."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return processor_name()


def resident_bytes() -> int:
    """Resident memory (RSS) of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def gpu_bytes_in_use(device: torch.device | None = None) -> int:
    """Memory of a GPU that all processes together use, as the driver reports it; None means the current device.

    RuntimeError if the GPU does not respond.
    """
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)

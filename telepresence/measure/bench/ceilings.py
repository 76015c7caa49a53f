"""Highest rates of a device, measured: memory copies, matrix units, copies to the host, kernel starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from telepresence.measure.bench.timing import batch_ms

if TYPE_CHECKING:
    import torch

COPY_BYTES: Final = 1 << 30
"""Bytes of the buffers whose copy measures memory bandwidth; much larger than any cache."""
CACHED_BYTES: Final = 1 << 23
"""Bytes of the buffers whose copy measures cache bandwidth; they fit into the L2 cache of a data centre GPU."""
SIDE: Final = 8192
"""Side of the square matrices whose product measures the matrix units."""
NODES: Final = 200
"""Number of kernels in the CUDA graph that measures the start of a kernel."""


def ceilings(device: torch.device, seconds: float) -> dict[str, float]:
    """Highest rates of ``device``, each measured for about ``seconds``; bytes of a copy count as read and as written.

    Keys: ``copy_gb_per_s``; on a GPU also ``cached_copy_gb_per_s``, ``fp16_tflops``, ``to_host_gb_per_s`` (one I420
    frame of 512 x 512 into pinned memory) and ``kernel_us`` (consecutive kernels in a CUDA graph).
    """
    import torch

    if device.type == "cpu":
        source = torch.rand(COPY_BYTES // 16)
        target = torch.empty_like(source)
        ms = batch_ms(lambda _: target.copy_(source), [None], device, seconds)
        return {"copy_gb_per_s": 2 * source.nbytes / ms / 1e6}

    def in_graph_ms(work: Callable[[], object]) -> float:
        """Milliseconds of one ``work`` among `NODES` in a CUDA graph, without time on the host."""
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(NODES):
                work()
        return batch_ms(lambda _: graph.replay(), [None] * 2, device, seconds) / NODES

    large = [(torch.empty(COPY_BYTES // 4, device=device), torch.rand(COPY_BYTES // 4, device=device)) for _ in "ab"]
    copy_ms = batch_ms(lambda pair: pair[0].copy_(pair[1]), large, device, seconds)
    del large
    small, cached = torch.zeros(32, device=device), torch.rand(CACHED_BYTES // 4, device=device)
    target = torch.empty_like(cached)
    pairs = [tuple(torch.randn((SIDE, SIDE), device=device).half() for _ in range(2)) for _ in range(2)]
    product = torch.empty((SIDE, SIDE), dtype=torch.float16, device=device)
    product_ms = batch_ms(lambda pair: torch.mm(*pair, out=product), pairs, device, seconds)
    frame = torch.randint(255, (512 * 768,), dtype=torch.uint8, device=device)
    pinned = torch.empty_like(frame, device="cpu", pin_memory=True)
    to_host_ms = batch_ms(lambda _: pinned.copy_(frame, non_blocking=True), [None] * 8, device, seconds)
    return {
        "copy_gb_per_s": 2 * COPY_BYTES / copy_ms / 1e6,
        "cached_copy_gb_per_s": 2 * CACHED_BYTES / in_graph_ms(lambda: torch.add(cached, 1.0, out=target)) / 1e6,
        "fp16_tflops": 2 * SIDE**3 / product_ms / 1e9,
        "to_host_gb_per_s": frame.nbytes / to_host_ms / 1e6,
        "kernel_us": 1000.0 * in_graph_ms(lambda: small.add_(1.0)),
    }

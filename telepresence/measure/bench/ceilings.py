"""The rates that no kernel exceeds, measured: memory, matrix units, the way to the host, the start of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from telepresence.measure.bench.timing import batch_ms

if TYPE_CHECKING:
    import torch

COPY_BYTES = 1 << 30  # far more than a cache
CACHED_BYTES = 1 << 23  # read and written again and again: stays in the L2 cache of any GPU of interest
SIDE = 8192  # of the matrices
NODES = 200  # of a graph of kernels that do next to nothing


def ceilings(device: torch.device, seconds: float) -> dict[str, float]:
    """Rates of ``device``; bytes count once as read and once as written.

    Keys: ``copy_gb_per_s``; on a GPU also ``cached_copy_gb_per_s``, ``fp16_tflops``, ``to_host_gb_per_s`` (one I420
    picture of 512 x 512 into pinned memory) and ``kernel_us`` (one after the other in a graph).
    """
    import torch

    if device.type == "cpu":
        source = torch.rand(COPY_BYTES // 16)
        target = torch.empty_like(source)
        ms = batch_ms(lambda _: target.copy_(source), [None], device, seconds)
        return {"copy_gb_per_s": 2 * source.nbytes / ms / 1e6}

    def in_graph_ms(work: Callable[[], object]) -> float:
        """Of one ``work`` among `NODES` in a graph: no time of the host's is in it."""
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
    picture = torch.randint(255, (512 * 768,), dtype=torch.uint8, device=device)
    pinned = torch.empty_like(picture, device="cpu", pin_memory=True)
    to_host_ms = batch_ms(lambda _: pinned.copy_(picture, non_blocking=True), [None] * 8, device, seconds)
    return {
        "copy_gb_per_s": 2 * COPY_BYTES / copy_ms / 1e6,
        "cached_copy_gb_per_s": 2 * CACHED_BYTES / in_graph_ms(lambda: torch.add(cached, 1.0, out=target)) / 1e6,
        "fp16_tflops": 2 * SIDE**3 / product_ms / 1e9,
        "to_host_gb_per_s": picture.nbytes / to_host_ms / 1e6,
        "kernel_us": 1000.0 * in_graph_ms(lambda: small.add_(1.0)),
    }

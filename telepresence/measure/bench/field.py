"""Throughput of a hash grid with its network: native kernels, torch reference and tiny-cuda-nn on the same points.

The shape is the one for which tiny-cuda-nn quotes its figures: 16 levels of 2 features, base 16, growth 1.447,
tables of 2^19 entries, two hidden layers of 64 with ReLU, 16 outputs.  Gradients are computed for the weights only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from telepresence.measure.bench.timing import batch_ms

if TYPE_CHECKING:
    import torch

    from insta_runtime.config import FieldConfig

LEVELS, FEATURES, BASE, GROWTH, LOG2_ENTRIES, HIDDEN, OUTPUTS = 16, 2, 16, 1.447, 19, 64, 16
GPU_POINTS, CPU_POINTS = 1 << 20, 1 << 14
POINT_SETS: Final = 4
"""Number of sets of random points, used in turn so that caches do not hold the last one."""


@dataclass(frozen=True)
class FieldImplementation:
    """One implementation of the hash grid with its network.

    Attributes:
        infer: computes the outputs of points (N, 3).
        train: computes outputs, and the gradients of the weights from the given gradient of the outputs.
        dtype: dtype of the gradient of the outputs.
    """

    infer: Callable[[torch.Tensor], object]
    train: Callable[[torch.Tensor, torch.Tensor], object]
    dtype: torch.dtype


def point_count(device: torch.device) -> int:
    """Number of points of one measurement on ``device``."""
    return GPU_POINTS if device.type == "cuda" else CPU_POINTS


def field_gpts(implementation: FieldImplementation, device: torch.device, seconds: float) -> dict[str, float]:
    """Throughput in 10^9 points a second, ``inference`` and ``training``, of random points in the unit cube."""
    import torch

    count = point_count(device)
    sets = [
        (
            torch.rand((count, 3), device=device),
            torch.randn((count, OUTPUTS), device=device).to(implementation.dtype) / count,
        )
        for _ in range(POINT_SETS)
    ]
    inference = batch_ms(lambda pair: implementation.infer(pair[0]), sets, device, seconds)
    training = batch_ms(lambda pair: implementation.train(*pair), sets, device, seconds)
    return {"inference": count / inference / 1e6, "training": count / training / 1e6}


def native_fields(device: torch.device) -> dict[str, FieldImplementation]:
    """Native kernels: ``native`` in one pass over the points; on a GPU also ``native_by_levels``, level by level."""
    import torch

    from insta_runtime.native.field import table_size
    from insta_runtime.native.grid_mlp import GridMlp

    config, generator = _config(), torch.Generator().manual_seed(0)
    grid = GridMlp(config, device, point_count(device))
    networks = [(HIDDEN, LEVELS * FEATURES), (HIDDEN, HIDDEN), (OUTPUTS, HIDDEN)]
    weights = [torch.randn(shape, generator=generator).view(-1) * (2.0 / shape[1]) ** 0.5 for shape in networks]
    grid.load(torch.randn(table_size(config), generator=generator) * 0.1, torch.cat(weights))
    found = {"native": FieldImplementation(grid.infer, grid.train, torch.float32)}
    if device.type == "cuda":
        found["native_by_levels"] = FieldImplementation(grid.infer_by_levels, grid.train, torch.float32)
    return found


def torch_field(device: torch.device) -> FieldImplementation:
    """The torch reference: hash grid and linear layers."""
    import torch
    from torch import nn

    from insta_runtime.field.hashgrid import HashGrid

    network = nn.Sequential(
        HashGrid(_config(), torch.Generator().manual_seed(0)),
        nn.Linear(LEVELS * FEATURES, HIDDEN, bias=False),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN, bias=False),
        nn.ReLU(),
        nn.Linear(HIDDEN, OUTPUTS, bias=False),
    ).to(device)
    return _module(network, torch.float32)


def _config() -> FieldConfig:
    from insta_runtime.config import FieldConfig

    finest = round(BASE * GROWTH ** (LEVELS - 1))
    return FieldConfig(LEVELS, FEATURES, LOG2_ENTRIES, BASE, finest, HIDDEN)


def tcnn_field() -> FieldImplementation:
    """tiny-cuda-nn with its fastest settings.  ImportError or OSError if it is not installed for this GPU."""
    import tinycudann as tcnn
    import torch

    grid: dict[str, Any] = {
        "otype": "HashGrid",
        "n_levels": LEVELS,
        "n_features_per_level": FEATURES,
        "log2_hashmap_size": LOG2_ENTRIES,
        "base_resolution": BASE,
        "per_level_scale": GROWTH,
    }
    network = {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": HIDDEN,
        "n_hidden_layers": 2,
    }
    model = tcnn.NetworkWithInputEncoding(3, OUTPUTS, grid, network)
    if getattr(tcnn, "supports_jit_fusion", bool)():
        model.jit_fusion = True
    return _module(model, torch.float16)


def _module(network: torch.nn.Module, dtype: torch.dtype) -> FieldImplementation:
    import torch

    # On a GPU autograd runs in a separate thread, and cuBLAS fails in a thread without a CUDA context.
    first = next(network.parameters())
    torch.ones(1, device=first.device, requires_grad=True).square().sum().backward()

    def infer(points: torch.Tensor) -> None:
        with torch.no_grad():
            network(points)

    def train(points: torch.Tensor, gradient: torch.Tensor) -> None:
        for parameter in network.parameters():
            parameter.grad = None
        network(points).backward(gradient)

    return FieldImplementation(infer, train, dtype)

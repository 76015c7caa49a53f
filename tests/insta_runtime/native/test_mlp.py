"""Benchmark network, hash grid and MLP, on tensor cores or CPU vectors, against torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from insta_runtime.config import FieldConfig
from insta_runtime.field.hashgrid import HashGrid
from insta_runtime.native.field import LOSS_SCALE
from insta_runtime.native.grid_mlp import OUTPUTS, GridMlp

CONFIG = FieldConfig(levels=16, features=2, log2_entries=10, base=4, finest=100, hidden=64)
# Relative to the largest value of a tensor. On a GPU the reference rounds to fp16 as the kernels do, so that the same
# neurons are active; float32 sums in another order remain, on a GPU rounded to fp16 (2^-11) between layers.
VALUES = {"cpu": 1e-5, "cuda": 3e-3}
GRADIENTS = {"cpu": 1e-5, "cuda": 1e-2}


def round_half(x: torch.Tensor) -> torch.Tensor:
    """Round to fp16 and back; gradients pass unchanged."""
    return x + (x.half().float() - x).detach()


def make_pair(device: torch.device, count: int) -> tuple[nn.Sequential, GridMlp]:
    generator = torch.Generator().manual_seed(count)
    inputs = CONFIG.levels * CONFIG.features
    network = nn.Sequential(
        HashGrid(CONFIG, generator),
        nn.Linear(inputs, CONFIG.hidden, bias=False),
        nn.ReLU(),
        nn.Linear(CONFIG.hidden, CONFIG.hidden, bias=False),
        nn.ReLU(),
        nn.Linear(CONFIG.hidden, OUTPUTS, bias=False),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.3 if parameter.shape[1] == CONFIG.features else (2.0 / parameter.shape[1]) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    network.to(device)
    kernels = GridMlp(CONFIG, device, count)
    if kernels.kernels.storage == torch.float16:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(parameter.half())
        for layer in network[:-1]:
            if not isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda *arguments: round_half(arguments[-1]))
    table, *layers = (parameter.detach().reshape(-1) for parameter in network.parameters())
    kernels.load(table, torch.cat(layers))
    return network, kernels


def random_points(device: torch.device, count: int) -> torch.Tensor:
    return torch.rand((count, 3), generator=torch.Generator().manual_seed(7)).to(device)


def near(actual: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    return bool((actual.float() - wanted).abs().max() <= tolerance * wanted.abs().max())


@pytest.mark.parametrize("count", [1, 33, 1000])
def test_outputs_agree(device: torch.device, count: int) -> None:
    network, kernels = make_pair(device, count)
    kernels.outputs.fill_(torch.nan)
    points = random_points(device, count)
    with torch.no_grad():
        assert near(kernels.infer(points), network(points), VALUES[device.type])


@pytest.mark.parametrize("count", [1, 700])
def test_gradients_agree(device: torch.device, count: int) -> None:
    network, kernels = make_pair(device, count)
    points = random_points(device, count)
    gradient = torch.randn((count, OUTPUTS), generator=torch.Generator().manual_seed(8)).to(device) / count
    kernels.train(points, gradient)
    network(points).backward(gradient)
    table, *layers = (parameter.grad.reshape(-1) for parameter in network.parameters() if parameter.grad is not None)
    assert near(kernels.table_gradients / LOSS_SCALE, table, GRADIENTS[device.type])
    parts = (kernels.network_gradients / LOSS_SCALE).split([len(layer) for layer in layers])
    for part, layer in zip(parts, layers, strict=True):
        assert near(part, layer, GRADIENTS[device.type])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_encoding_level_by_level_gives_the_same_outputs() -> None:
    device = torch.device("cuda")
    _, kernels = make_pair(device, 1001)
    points = random_points(device, 1001)
    fused = kernels.infer(points).clone()
    kernels.outputs.fill_(torch.nan)
    assert near(kernels.infer_by_levels(points), fused.float(), 2e-3)  # sums of eight corners in another order

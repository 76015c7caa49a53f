"""Adam kernel and moving average against torch.optim.Adam."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from insta_runtime.learn.adam import BETA1, BETA2, EPSILON
from insta_runtime.native.kernels import Kernels

LOSS_SCALE = 128.0
CONSTANTS = {"LOSS_SCALE": LOSS_SCALE, "BETA1": BETA1, "BETA2": BETA2, "EPSILON": EPSILON, "NETWORK_DECAY": 0.0}
RATES = (0.01, 0.003)
DECAY = 0.9

# Rounding of a few float32 operations in another order; a step is at most 0.01 on parameters of about one.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@dataclass
class State:
    """Parameter and moment vectors on the device; the first ``table`` parameters are hash-grid entries."""

    kernels: Kernels
    table: int
    parameters: torch.Tensor
    gradients: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    averaged: torch.Tensor
    copy: torch.Tensor | None
    steps: int = 0

    def step(self, gradients: torch.Tensor, loss: float = 0.5) -> None:
        self.steps += 1
        self.gradients.copy_(gradients * LOSS_SCALE)
        control = torch.tensor(
            [*RATES, 1 - BETA1**self.steps, math.sqrt(1 - BETA2**self.steps), DECAY, loss, 0.0, 0.0],
            device=self.parameters.device,
        )
        self.kernels.launch(
            "adam_step",
            self.parameters,
            self.gradients,
            self.first,
            self.second,
            self.averaged,
            self.copy,
            self.table,
            len(self.parameters),
            control,
            items=-(-len(self.parameters) // 4),
        )

    def vectors(self) -> tuple[torch.Tensor, ...]:
        copy = () if self.copy is None else (self.copy,)
        return tuple(x.clone() for x in (self.parameters, self.first, self.second, self.averaged, *copy))


def start(device: torch.device, size: int, table: int, shift: int = 0, decay: float = 0.0) -> State:
    """New vectors, which begin ``shift`` numbers behind an aligned address."""

    def vector(values: torch.Tensor) -> torch.Tensor:
        memory = torch.full((len(values) + shift,), float("nan"), dtype=values.dtype, device=device)
        memory[shift:] = values
        return memory[shift:]

    kernels = Kernels(device, CONSTANTS | {"NETWORK_DECAY": decay})
    parameters, zeros = torch.randn(size), torch.zeros(size)
    copy = vector(parameters[:table].to(kernels.storage)) if kernels.storage != torch.float32 else None
    return State(
        kernels, table, vector(parameters), vector(zeros), vector(zeros), vector(zeros), vector(parameters), copy
    )


class Twin:
    """torch.optim.Adam with the settings of the trainer, and the moving average."""

    def __init__(self, state: State, decay: float = 0.0) -> None:
        parameters = state.parameters.cpu()
        self.parts = [
            torch.nn.Parameter(part.clone()) for part in (parameters[: state.table], parameters[state.table :])
        ]
        groups = [
            {"params": [part], "lr": rate, "weight_decay": share}
            for part, rate, share in zip(self.parts, RATES, (0.0, decay), strict=True)
        ]
        self.optimiser = torch.optim.Adam(groups, betas=(BETA1, BETA2), eps=EPSILON, fused=False)
        self.averaged = parameters.clone()

    @torch.no_grad()
    def step(self, gradients: torch.Tensor) -> None:
        table = len(self.parts[0])
        self.parts[0].grad, self.parts[1].grad = gradients[:table].clone(), gradients[table:].clone()
        self.optimiser.step()
        self.averaged.lerp_(self.parameters, 1.0 - DECAY)

    @property
    def parameters(self) -> torch.Tensor:
        return torch.cat([part.detach() for part in self.parts])


def assert_equal(state: State, twin: Twin) -> None:
    torch.testing.assert_close(state.parameters.cpu(), twin.parameters, **CLOSE)
    torch.testing.assert_close(state.averaged.cpu(), twin.averaged, **CLOSE)
    if state.copy is not None:
        assert torch.equal(state.copy.cpu(), state.parameters[: state.table].half().cpu())


# Sizes around a multiple of the vector size, the end of the table within an item, and unaligned vectors.
@pytest.mark.parametrize(
    ("size", "table", "shift"),
    [(1, 1, 0), (3, 0, 0), (64, 32, 0), (1000, 500, 0), (1001, 498, 0), (1003, 701, 1), (70, 70, 2)],
)
def test_steps_are_those_of_torch(device: torch.device, size: int, table: int, shift: int) -> None:
    state = start(device, size, table, shift)
    twin = Twin(state)
    for step in range(6):
        # Gradients of all magnitudes; ranges without gradients, some of them only in later steps.
        gradients = torch.randn(size) * 10.0 ** torch.randint(-9, 1, (size,))
        gradients[size // 3 : size // 2] = 0.0
        if step > 2:
            gradients[: size // 4] = 0.0
        state.step(gradients)
        twin.step(gradients)
        assert (state.gradients == 0).all()
        assert_equal(state, twin)


def test_networks_decay_and_the_table_does_not(device: torch.device) -> None:
    state = start(device, 333, 100, decay=0.01)
    twin = Twin(state, decay=0.01)
    for _ in range(4):
        gradients = torch.randn(333) * 0.1
        state.step(gradients)
        twin.step(gradients)
        assert_equal(state, twin)


def test_parameters_that_never_had_a_gradient_do_not_change(device: torch.device) -> None:
    state = start(device, 256, 128)
    before = state.vectors()
    gradients = torch.zeros(256)
    gradients[200] = 1.0
    state.step(gradients)
    others = torch.arange(256, device=device) // 16 != 200 // 16
    for now, then in zip(state.vectors(), before, strict=True):
        assert torch.equal(now[others[: len(now)]], then[others[: len(then)]])
    assert state.parameters[200] != before[0][200]


def test_a_parameter_comes_to_rest_with_its_average(device: torch.device) -> None:
    """Negligible moments become zero, but not before the average has reached the parameter."""
    state = start(device, 16, 16)
    twin = Twin(state)
    gradients = torch.full((16,), 1e-17)
    for _ in range(500):
        state.step(gradients)
        twin.step(gradients)
        gradients = torch.zeros(16)
    assert (state.first == 0).all()
    assert (state.second == 0).all()
    assert_equal(state, twin)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(device: torch.device, loss: float) -> None:
    state = start(device, 100, 50)
    state.step(torch.randn(100))
    before = state.vectors()
    state.step(torch.randn(100), loss)
    assert (state.gradients == 0).all()
    assert all(torch.equal(now, then) for now, then in zip(state.vectors(), before, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_gradient_that_is_not_finite_counts_as_zero(device: torch.device, value: float) -> None:
    state = start(device, 100, 50)
    twin = Twin(state)
    for _ in range(2):
        gradients = torch.randn(100)
        gradients[[7, 60]] = value
        state.step(gradients)
        gradients[[7, 60]] = 0.0
        twin.step(gradients)
        assert (state.gradients == 0).all()
    assert_equal(state, twin)

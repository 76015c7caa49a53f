"""Field kernels against RadianceField: values, and gradients of all parameters."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from insta_runtime.config import FieldConfig
from insta_runtime.field.expression_code import CODE_WIDTH, condition
from insta_runtime.field.lip_code import condition_lips
from insta_runtime.field.radiance import INITIAL_LOG_DENSITY, MAX_LOG_DENSITY, RadianceField
from insta_runtime.native.field import (
    LOSS_SCALE,
    PackedField,
    field_constants,
    flatten,
    parameter_count,
    table_size,
    unflatten,
    unsupported,
)
from insta_runtime.native.kernels import Kernels, Struct

CONFIGS = {
    "small": FieldConfig(
        levels=4, features=2, log2_entries=12, base=8, finest=64, hidden=16, density_layers=1, colour_layers=2
    ),
    "cpu": FieldConfig(
        levels=6, features=4, log2_entries=12, base=8, finest=128, hidden=32, density_layers=1, colour_layers=2
    ),
    "default": FieldConfig(levels=12, features=2, log2_entries=12, base=8, finest=128, hidden=64),
    "odd": FieldConfig(
        levels=5, features=6, log2_entries=10, base=4, finest=40, hidden=48, density_layers=1, colour_layers=2
    ),
    "paper": FieldConfig(
        levels=16,
        features=8,
        log2_entries=10,
        base=4,
        finest=60,
        hidden=64,
        density_layers=2,
        colour_layers=3,
        direction_bands=4,
    ),
    "deep": FieldConfig(
        levels=4,
        features=2,
        log2_entries=10,
        base=4,
        finest=40,
        hidden=32,
        density_layers=3,
        colour_layers=2,
        direction_bands=3,
    ),
    "flat": FieldConfig(
        levels=3,
        features=4,
        log2_entries=10,
        base=4,
        finest=40,
        hidden=16,
        density_layers=1,
        colour_layers=3,
        direction_bands=1,
    ),
}
CODES = {"paper": "lips"}  # kind of expression code, where it is not the default
POISON = -777.0
# For GPU kernels the reference rounds alike (`round_alike`), so that the same neurons are active. What remains: on a
# CPU float32 sums in another order; on a GPU the same, rounded to fp16 (2^-11) between layers.
VALUES = {"cpu": {"rtol": 2e-5, "atol": 2e-5}, "cuda": {"rtol": 3e-3, "atol": 3e-3}}
# Relative to the largest gradient of a tensor, as single terms cancel. On a GPU with fp16 between layers.
GRADIENTS = {"cpu": 2e-5, "cuda": 1e-2}


@dataclass
class Case:
    """The same field in kernels and in torch, with ``count`` samples in buffers for ``capacity``."""

    config: FieldConfig
    lips: bool
    field: RadianceField
    kernels: Kernels
    packed: PackedField
    vector: torch.Tensor
    samples: Struct
    codes: torch.Tensor
    count: int
    capacity: int

    def forward(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Density, colour and encoding, in buffers filled with NaN before."""
        device = self.codes.device
        density = torch.full((self.capacity,), POISON, device=device)
        colour = torch.full((self.capacity, 3), POISON, device=device)
        size = self.capacity * self.config.levels * self.config.features
        encoded = torch.full((size,), POISON, dtype=self.kernels.storage, device=device)
        self.kernels.launch(
            "field_samples", self.packed.weights, self.samples, self.codes, self.codes.shape[1], density, colour,
            encoded, items=self.capacity,
        )  # fmt: skip
        return density, colour, encoded

    def backward(self, encoded: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Gradients of all parameters in the flat vector."""
        sums = torch.zeros_like(self.vector)
        table, networks = sums.split([table_size(self.config), len(sums) - table_size(self.config)])
        pulls = torch.full_like(encoded, POISON)
        self.kernels.launch(
            "field_backward", self.packed.weights, self.samples, self.codes, self.codes.shape[1], encoded,
            gradient * LOSS_SCALE, networks, pulls, items=512,
        )  # fmt: skip
        self.kernels.launch("grid_backward", self.samples, pulls, table, items=2 * self.capacity)
        return sums / LOSS_SCALE


def round_half(x: torch.Tensor) -> torch.Tensor:
    """Round to fp16 and back; gradients pass unchanged."""
    return x + (x.half().float() - x).detach()


def round_alike(field: RadianceField) -> None:
    """Make the torch field round weights, layer inputs and hidden layers to fp16, as GPU kernels do."""
    with torch.no_grad():
        for name, parameter in field.named_parameters():
            if not name.endswith("bias"):
                parameter.copy_(parameter.half())
    for network in (field.density_net, field.colour_net):
        network.register_forward_pre_hook(lambda _, inputs: (round_half(inputs[0]),))
        for layer in network:
            if isinstance(layer, torch.nn.ReLU):
                layer.register_forward_hook(lambda *arguments: round_half(arguments[-1]))


def make_case(device: torch.device, name: str, count: int, capacity: int, seed: int = 0) -> Case:
    config = CONFIGS[name]
    generator = torch.Generator().manual_seed(seed)
    field = RadianceField(config, generator)
    with torch.no_grad():  # as after some training: significant features, biases that are not zero
        field.grid.table.copy_(torch.randn(field.grid.table.shape, generator=generator) * 0.3)
        for name_, parameter in field.named_parameters():
            if name_.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    field = field.to(device)
    kernels = Kernels(device, field_constants(config, CODES.get(name, "faded")))
    if kernels.storage == torch.float16:
        round_alike(field)
    packed = PackedField(kernels, config)
    vector = flatten(field.state_dict(), config)
    packed.load(vector)
    position = torch.rand((capacity, 3), generator=generator) * 1.2 - 0.1  # some points lie outside and are clamped
    position[: min(capacity, 8)] = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)[: min(capacity, 8)]
    direction = torch.nn.functional.normalize(torch.randn((capacity, 3), generator=generator), dim=-1)
    masks = torch.rand((capacity, 2), generator=generator)
    frame = torch.randint(0, 3, (capacity,), generator=generator, dtype=torch.int32)
    for tensor in (position, direction, masks):
        tensor[count:] = torch.nan
    frame[count:] = 1 << 30
    none = dict.fromkeys(("first", "steps", "step_ray", "step_t", "slot", "histogram"))
    samples = kernels.struct(
        "Samples", position=position.to(device), direction=direction.to(device), masks=masks.to(device),
        frame=frame.to(device), totals=torch.tensor([count, count, 0, 0], dtype=torch.int32, device=device),
        capacity=capacity, max_steps=0, max_samples=0, **none,
    )  # fmt: skip
    codes = torch.randn((3, CODE_WIDTH + 5), generator=generator).to(device)  # rows may be longer
    return Case(config, name in CODES, field, kernels, packed, vector, samples, codes, count, capacity)


def expected(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    tensors, n = case.samples.tensors, case.count
    told = condition_lips if case.lips else condition
    codes = told(case.codes[tensors["frame"][:n].long(), :CODE_WIDTH], tensors["masks"][:n])
    density, colour = case.field(tensors["position"][:n], tensors["direction"][:n], codes)
    return density, colour


@pytest.mark.parametrize(("name", "count", "capacity"), [
    ("small", 1000, 1100), ("cpu", 333, 333), ("default", 700, 701), ("odd", 130, 200), ("small", 0, 64),
    ("small", 1, 1), ("paper", 333, 350), ("deep", 130, 130), ("flat", 70, 71),
])  # fmt: skip
def test_samples_agree(device: torch.device, name: str, count: int, capacity: int) -> None:
    case = make_case(device, name, count, capacity)
    density, colour, encoded = case.forward()
    with torch.no_grad():
        true_density, true_colour = expected(case)
    torch.testing.assert_close(density[:count].log(), true_density.log(), **VALUES[device.type])
    torch.testing.assert_close(colour[:count], true_colour, **VALUES[device.type])
    assert (density[count:] == POISON).all()
    assert (colour[count:] == POISON).all()
    written = (encoded != POISON).sum()
    assert written == count * case.config.levels * case.config.features


@pytest.mark.parametrize(("name", "count", "capacity"), [
    ("small", 500, 600), ("cpu", 333, 333), ("default", 300, 301), ("odd", 130, 200), ("paper", 300, 310),
    ("deep", 130, 130), ("flat", 70, 71),
])  # fmt: skip
def test_gradients_agree(device: torch.device, name: str, count: int, capacity: int) -> None:
    case = make_case(device, name, count, capacity, seed=1)
    gradient = torch.randn((capacity, 4), generator=torch.Generator().manual_seed(2)) * 1e-3
    gradient[count:] = torch.nan
    gradient = gradient.to(device)
    _, _, encoded = case.forward()
    sums = unflatten(case.backward(encoded, gradient), case.config)
    density, colour = expected(case)
    wanted = gradient[:count]
    (density.log() * wanted[:, 0]).sum().backward(retain_graph=True)
    (torch.logit(colour) * wanted[:, 1:]).sum().backward()
    for key, parameter in case.field.named_parameters():
        assert parameter.grad is not None
        error = (sums[key] - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert error < GRADIENTS[device.type], (key, float(error))


def test_gradients_are_added(device: torch.device) -> None:
    case = make_case(device, "small", 100, 100)
    gradient = torch.ones((100, 4), device=device) * 1e-3
    _, _, encoded = case.forward()
    once = case.backward(encoded, gradient)
    sums = torch.ones_like(case.vector)
    networks = sums[table_size(case.config) :]
    case.kernels.launch(
        "field_backward", case.packed.weights, case.samples, case.codes, case.codes.shape[1], encoded,
        gradient * LOSS_SCALE, networks, torch.empty_like(encoded), items=256,
    )  # fmt: skip
    wanted = once[table_size(case.config) :] * LOSS_SCALE + 1.0
    torch.testing.assert_close(networks, wanted, rtol=1e-4, atol=1e-4)


def test_no_samples_give_no_gradients(device: torch.device) -> None:
    case = make_case(device, "small", 0, 32)
    _, _, encoded = case.forward()
    sums = case.backward(encoded, torch.full((32, 4), torch.nan, device=device))
    assert (sums == 0).all()


def test_density_at_its_limit_has_no_gradient(device: torch.device) -> None:
    case = make_case(device, "small", 64, 64)
    with torch.no_grad():
        case.field.density_net[2].bias[0] = MAX_LOG_DENSITY - INITIAL_LOG_DENSITY + 100.0
    case.packed.load(flatten(case.field.state_dict(), case.config))
    density, _, encoded = case.forward()
    torch.testing.assert_close(density.log(), torch.full_like(density, MAX_LOG_DENSITY))
    gradient = torch.zeros((64, 4), device=device)
    gradient[:, 0] = 1e-3
    assert (case.backward(encoded, gradient) == 0).all()


def test_gradients_agree_with_finite_differences() -> None:
    """Finite differences of the CPU kernels' forward pass, for one parameter of each tensor."""
    case = make_case(torch.device("cpu"), "small", 96, 96, seed=3)
    gradient = torch.randn((96, 4), generator=torch.Generator().manual_seed(4))

    def loss() -> float:
        density, colour, _ = case.forward()
        raw = torch.cat([density.double().log()[:, None], torch.logit(colour.double())], dim=1)
        return float((raw * gradient).sum())

    _, _, encoded = case.forward()
    sums = case.backward(encoded, gradient)
    step, first = 5e-3, 0
    for parameter in case.field.parameters():
        part = sums[first : first + parameter.numel()]
        at = first + int(part.abs().argmax())
        before = float(case.vector[at])
        case.vector[at] = before + step
        up = loss()
        case.vector[at] = before - step
        slope = (up - loss()) / (2 * step)
        case.vector[at] = before
        # float32 sums of a hundred samples over a small difference, and kinks of ReLU within it
        assert slope == pytest.approx(float(sums[at]), rel=0.03), at
        first += parameter.numel()


def test_the_flat_vector_converts_to_a_state_dict_and_back() -> None:
    config = CONFIGS["odd"]
    field = RadianceField(config, torch.Generator().manual_seed(0))
    vector = flatten(field.state_dict(), config)
    assert len(vector) == parameter_count(config) == sum(p.numel() for p in field.parameters())
    assert list(unflatten(vector, config)) == list(field.state_dict())
    for name, tensor in unflatten(vector, config).items():
        assert torch.equal(tensor, field.state_dict()[name])
    with pytest.raises(ValueError, match=r"grid\.table"):
        flatten(field.state_dict(), CONFIGS["small"])


def test_a_size_that_tensor_cores_do_not_support_is_reported() -> None:
    assert unsupported(FieldConfig()) is None
    assert "hidden" in (unsupported(FieldConfig(hidden=40)) or "")
    assert unsupported(FieldConfig(levels=24, features=8)) is None

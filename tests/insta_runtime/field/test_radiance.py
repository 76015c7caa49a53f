"""The radiance field: gradients of every parameter, density, colour, directions."""

from __future__ import annotations

import torch

from insta_runtime.config import FieldConfig
from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.field.radiance import MAX_LOG_DENSITY, RadianceField, direction_basis

TINY = FieldConfig(levels=2, features=2, log2_entries=4, base=1, finest=3, hidden=3)


def make_field(config: FieldConfig = TINY) -> RadianceField:
    return RadianceField(config, torch.Generator().manual_seed(0))


def inputs(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn((count, 3), generator=generator, dtype=dtype)
    points = torch.rand((count, 3), generator=generator, dtype=dtype)
    codes = torch.randn((count, CODE_WIDTH), generator=generator, dtype=dtype)
    return points, torch.nn.functional.normalize(directions, dim=-1), codes


def test_gradients_of_all_parameters_agree_with_finite_differences() -> None:
    field = make_field().double()
    names = [name for name, _ in field.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in field.parameters()]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        parameters[names.index("grid.table")].normal_(generator=generator)
        for name, parameter in zip(names, parameters, strict=True):
            if name.endswith("bias"):  # off the kink that ReLU has at zero
                parameter.normal_(generator=generator)
    points, directions, codes = inputs(3, torch.float64)

    def seen(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.func.functional_call(field, dict(zip(names, values, strict=True)), (points, directions, codes))

    assert torch.autograd.gradcheck(seen, parameters)


def test_gradients_of_codes_and_directions_agree_with_finite_differences() -> None:
    field = make_field().double()
    points, directions, codes = (t.requires_grad_(i > 0) for i, t in enumerate(inputs(3, torch.float64)))
    assert torch.autograd.gradcheck(lambda d, c: field(points, d, c), (directions, codes))


def test_colour_and_density_are_in_range_and_the_initial_density_is_low() -> None:
    field = make_field(FieldConfig(levels=4, log2_entries=10, base=4, finest=32, hidden=16))
    points, directions, codes = inputs(500)
    density, colour = field(points, directions, 0.0 * codes)
    assert density.shape == (500,)
    assert colour.shape == (500, 3)
    assert colour.min() > 0
    assert colour.max() < 1
    assert 1.0 < float(density.detach().median()) < 50.0  # per metre: 4 mm let 80 % through at least


def test_density_is_clamped_and_its_gradient_stays_finite() -> None:
    field = make_field()
    with torch.no_grad():
        field.density_net[-1].bias[0] = 1000.0
    points, _, codes = inputs(10)
    density, _ = field.density(points, codes)
    torch.testing.assert_close(density, torch.full((10,), MAX_LOG_DENSITY).exp())
    density.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in field.parameters() if p.grad is not None)


def test_density_ignores_the_view_direction() -> None:
    field = make_field()
    points, directions, codes = inputs(20)
    first, second = field(points, directions, codes), field(points, -directions, codes)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_direction_basis_is_constant_and_linear() -> None:
    directions = inputs(4)[1]
    assert torch.equal(direction_basis(directions, 2), torch.cat([torch.ones((4, 1)), directions], dim=1))


def test_each_band_of_directions_has_the_same_size_and_its_members_are_independent() -> None:
    directions = torch.nn.functional.normalize(torch.randn(20000, 3, dtype=torch.float64), dim=-1)
    basis = direction_basis(directions, 4)
    for band in range(4):
        part = basis[:, band**2 : (band + 1) ** 2]
        torch.testing.assert_close(part.square().sum(dim=1), torch.ones(len(part), dtype=torch.float64))
    product = basis.T @ basis / len(basis)  # of spherical harmonics: nothing beside the diagonal
    assert (product - product.diagonal().diag()).abs().max() < 0.02

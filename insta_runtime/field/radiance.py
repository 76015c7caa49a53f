"""Radiance field in canonical space: (position, view direction, expression code) -> (density, colour)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from insta_runtime.config import FieldConfig
from insta_runtime.field.expression_code import CODE_WIDTH, HEAD_WIDTH
from insta_runtime.field.hashgrid import HashGrid

GEOMETRY_FEATURES = 15
"""Number of outputs of the density network, besides the density, that are inputs of the colour network."""
MAX_LOG_DENSITY = 9.0
"""Maximum logarithm of the density, exp(9) / m: opaque within half a millimetre; keeps gradients finite."""
CODE_LAYER = "density_net.0.weight"
"""Name of the weights (outputs, inputs) whose last inputs are the expression code."""
INITIAL_LOG_DENSITY = 3.0
"""Logarithm of the initial density, per metre: thin fog everywhere, so that every region gets gradients."""


class RadianceField(nn.Module):
    """Radiance field of a hash grid, a density network and a colour network.

    The density per metre is ``exp`` of the density network's first output; colours are sRGB in [0, 1].
    """

    def __init__(self, config: FieldConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.grid = HashGrid(config, generator)
        encoded = config.levels * config.features + CODE_WIDTH
        shaded = GEOMETRY_FEATURES + config.direction_bands**2
        self.bands = config.direction_bands
        density_hidden, colour_hidden = ([config.hidden] * n for n in (config.density_layers, config.colour_layers))
        self.density_net = _mlp([encoded, *density_hidden, 1 + GEOMETRY_FEATURES], generator)
        self.colour_net = _mlp([shaded, *colour_hidden, 3], generator)
        first = self.density_net[0]
        assert isinstance(first, nn.Linear)
        with torch.no_grad():  # a new field is the same for all expressions: with a few frames it would memorise them
            first.weight[:, -HEAD_WIDTH:] = 0.0

    def density(self, points: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Density (N,) per metre and geometry features (N, 15) at ``points`` (N, 3) in the unit cube.

        ``codes`` (N, CODE_WIDTH) are expression codes, already multiplied by the masks.
        """
        raw = self.density_net(torch.cat([self.grid(points), codes], dim=-1))
        density = (raw[:, 0] + INITIAL_LOG_DENSITY).clamp(max=MAX_LOG_DENSITY).exp()
        return density, raw[:, 1:]

    def forward(
        self, points: torch.Tensor, directions: torch.Tensor, codes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Density (N,) per metre and sRGB colour (N, 3) in [0, 1].

        Args:
            points: (N, 3) positions in the unit cube of the canonical box.
            directions: (N, 3) canonical unit view directions.
            codes: (N, CODE_WIDTH) expression codes, already multiplied by the masks.
        """
        density, features = self.density(points, codes)
        colour = self.colour_net(torch.cat([features, direction_basis(directions, self.bands)], dim=-1))
        return density, torch.sigmoid(colour)


def with_head_part(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a field whose expression codes had no head part, or their moments, with zeros for its inputs."""
    first = weights.get(CODE_LAYER)
    if first is None or first.dim() != 2:
        return weights
    return weights | {CODE_LAYER: nn.functional.pad(first, (0, HEAD_WIDTH))}


def direction_basis(directions: torch.Tensor, bands: int) -> torch.Tensor:
    """Real spherical harmonics of unit directions (N, 3), the first ``bands`` bands: (N, bands^2).

    Each band is scaled (Schmidt) so that its squares add up to one: 1; x, y, z; ...  Two bands are the
    default because higher bands overfit the few view angles of a talking head.
    """
    x, y, z = directions.unbind(dim=-1)
    harmonics = [torch.ones_like(x), x, y, z]
    if bands > 2:
        root = math.sqrt(3.0)
        harmonics += [root * x * y, root * y * z, 1.5 * z * z - 0.5, root * x * z, 0.5 * root * (x * x - y * y)]
    if bands > 3:
        a, b, c = math.sqrt(5.0 / 8.0), math.sqrt(15.0), math.sqrt(3.0 / 8.0)
        harmonics += [
            a * y * (3.0 * x * x - y * y),
            b * x * y * z,
            c * y * (5.0 * z * z - 1.0),
            z * (2.5 * z * z - 1.5),
            c * x * (5.0 * z * z - 1.0),
            0.5 * b * z * (x * x - y * y),
            a * x * (x * x - 3.0 * y * y),
        ]
    return torch.stack(harmonics[: bands**2], dim=-1)


def _mlp(widths: list[int], generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(torch.randn((outputs, inputs), generator=generator) * (2.0 / inputs) ** 0.5)
            linear.bias.zero_()
        layers.append(linear)
        if i < len(widths) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)

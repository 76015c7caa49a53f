"""The radiance field in canonical space: (position, view direction, expression code) -> (density, colour)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from insta_runtime.config import FieldConfig
from insta_runtime.field.conditioning import CODE_WIDTH
from insta_runtime.field.hashgrid import HashGrid

GEOMETRY_FEATURES = 15  # what the density network hands to the colour network beside the density
DIRECTION_FEATURES = 4
MAX_LOG_DENSITY = 9.0  # exp(9) / m: opaque within half a millimetre; keeps exp and its gradient finite
INITIAL_LOG_DENSITY = 3.0  # a thin haze at first, so that every region gets gradients


class RadianceField(nn.Module):
    """Hash grid, density network and colour network.

    Density is ``exp`` of the first output, per metre; colour is sRGB in [0, 1].
    """

    def __init__(self, config: FieldConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.grid = HashGrid(config, generator)
        encoded = config.levels * config.features + CODE_WIDTH
        self.density_net = _mlp([encoded, config.hidden, 1 + GEOMETRY_FEATURES], generator)
        self.colour_net = _mlp([GEOMETRY_FEATURES + DIRECTION_FEATURES, config.hidden, config.hidden, 3], generator)

    def density(self, points: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Density (N,) per metre and geometry features (N, 15) at unit-cube ``points`` with faded ``codes``."""
        raw = self.density_net(torch.cat([self.grid(points), codes], dim=-1))
        density = (raw[:, 0] + INITIAL_LOG_DENSITY).clamp(max=MAX_LOG_DENSITY).exp()
        return density, raw[:, 1:]

    def forward(
        self, points: torch.Tensor, directions: torch.Tensor, codes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Density (N,) per metre and colour (N, 3).

        Args:
            points: (N, 3) in the unit cube of the canonical box.
            directions: (N, 3) unit, canonical.
            codes: (N, CODE_WIDTH), already faded by the masks.
        """
        density, features = self.density(points, codes)
        colour = self.colour_net(torch.cat([features, direction_basis(directions)], dim=-1))
        return density, torch.sigmoid(colour)


def direction_basis(directions: torch.Tensor) -> torch.Tensor:
    """Spherical harmonics of degree 0 and 1 of unit directions (N, 3), unnormalised: (N, 4).

    Low on purpose: higher degrees fit the few view angles of a talking head and break at unseen ones.
    """
    return torch.cat([torch.ones_like(directions[:, :1]), directions], dim=-1)


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

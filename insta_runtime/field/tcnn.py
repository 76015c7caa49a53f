"""Radiance field built from tiny-cuda-nn (Mueller 2021); needs the package `tinycudann`.

The architecture of `radiance.RadianceField` except for differences of tiny-cuda-nn: its lattice is shifted by half a
cell, its networks have no biases and compute in half precision.  Its weights cannot be used by other backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from insta_runtime.errors import UserError
from insta_runtime.field.expression_code import CODE_WIDTH
from insta_runtime.field.radiance import (
    GEOMETRY_FEATURES,
    INITIAL_LOG_DENSITY,
    MAX_LOG_DENSITY,
    direction_basis,
)

if TYPE_CHECKING:
    from insta_runtime.config import FieldConfig

TCNN_WEIGHTS = "grid.params"
"""Name of a tensor that only fields of tiny-cuda-nn have."""
WIDTHS = (16, 32, 64, 128)
"""Numbers of neurons of a hidden layer that the fully fused networks of tiny-cuda-nn support."""


class TcnnMissing(UserError):
    """Error: tiny-cuda-nn is not installed, or was not built for this GPU."""


class TcnnField(nn.Module):
    """Radiance field of tiny-cuda-nn on a CUDA device, with the interface of `RadianceField`.

    Raises TcnnMissing without tiny-cuda-nn, and UserError for an unsupported number of neurons.
    """

    def __init__(self, config: FieldConfig, seed: int) -> None:
        super().__init__()
        try:
            import tinycudann as tcnn
        except (ImportError, OSError) as error:  # OSError: its import finds no GPU that it was built for
            reason = f"the tcnn backend needs tiny-cuda-nn, built for this GPU ({error}): choose another backend"
            raise TcnnMissing(reason) from None
        if config.hidden not in WIDTHS:
            raise UserError(f"the tcnn backend supports radiance.hidden = {WIDTHS}, not {config.hidden}")
        growth = (config.finest / config.base) ** (1.0 / max(1, config.levels - 1))
        grid = {
            "otype": "HashGrid",
            "n_levels": config.levels,
            "n_features_per_level": config.features,
            "log2_hashmap_size": config.log2_entries,
            "base_resolution": config.base,
            "per_level_scale": growth,
        }
        encoded = config.levels * config.features + CODE_WIDTH
        self.grid = tcnn.Encoding(3, grid, seed=seed)
        self.density_net = tcnn.Network(
            encoded, 1 + GEOMETRY_FEATURES, _network(config.hidden, config.density_layers), seed=seed + 1
        )
        self.bands = config.direction_bands
        shaded = GEOMETRY_FEATURES + self.bands**2
        self.colour_net = tcnn.Network(shaded, 3, _network(config.hidden, config.colour_layers), seed=seed + 2)

    def density(self, points: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Density (N,) per metre and geometry features (N, 15), as `RadianceField.density`."""
        encoded = torch.cat([self.grid(points.clamp(0.0, 1.0)).float(), codes], dim=-1)
        raw = self.density_net(encoded).float()
        density = (raw[:, 0] + INITIAL_LOG_DENSITY).clamp(max=MAX_LOG_DENSITY).exp()
        return density, raw[:, 1:]

    def forward(
        self, points: torch.Tensor, directions: torch.Tensor, codes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Density (N,) per metre and colour (N, 3), as `RadianceField.forward`."""
        density, features = self.density(points, codes)
        colour = self.colour_net(torch.cat([features, direction_basis(directions, self.bands)], dim=-1)).float()
        return density, torch.sigmoid(colour)


def _network(hidden: int, layers: int) -> dict[str, Any]:
    return {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": hidden,
        "n_hidden_layers": layers,
    }

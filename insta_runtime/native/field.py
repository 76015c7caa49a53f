"""The radiance field as device code reads it: constants, the flat vector of parameters, packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from math import prod

import torch

from insta_runtime.config import FieldConfig
from insta_runtime.field.expression_code import CODE_WIDTH, MOUTH_WIDTH
from insta_runtime.field.hashgrid import level_resolutions, level_rows
from insta_runtime.field.radiance import (
    GEOMETRY_FEATURES,
    INITIAL_LOG_DENSITY,
    MAX_LOG_DENSITY,
)
from insta_runtime.native.kernels import Constant, Kernels, Struct

LOSS_SCALE = 16384.0
"""Gradients are carried times this, so that those of single samples (1e-7 of a step's mean loss) are fp16 numbers.  A
power of two, hence exact; a sample's own gradient stays below 65504 / LOSS_SCALE = 4."""

_MAX_HIDDEN = 64  # registers of the backward pass


def field_constants(config: FieldConfig, code: str = "faded") -> dict[str, Constant]:
    """What the device code of the field is compiled with (cuda/hashgrid.cuh, cuda/field.cuh).

    ``code`` is `ConditioningConfig.code`.
    """
    entries = 1 << config.log2_entries
    resolutions, rows = level_resolutions(config), level_rows(config)
    return {
        "LEVELS": config.levels,
        "FEATURES": config.features,
        "ENTRIES": entries,
        "DENSE_LEVELS": sum((r + 2) ** 3 <= entries for r in resolutions),
        "RESOLUTION": tuple(resolutions),
        "OFFSET": tuple(accumulate(rows, initial=0))[:-1],
        "HIDDEN": config.hidden,
        "DENSITY_LAYERS": config.density_layers,
        "COLOUR_LAYERS": config.colour_layers,
        "DIRECTION_BANDS": config.direction_bands,
        "CODE_WIDTH": CODE_WIDTH,
        "MOUTH_WIDTH": CODE_WIDTH if code == "lips" else MOUTH_WIDTH,
        "CODE_OUTSIDE": int(code == "lips"),
        "GEOMETRY": GEOMETRY_FEATURES,
        "MAX_LOG_DENSITY": MAX_LOG_DENSITY,
        "INITIAL_LOG_DENSITY": INITIAL_LOG_DENSITY,
        "LOSS_SCALE": LOSS_SCALE,
        "PACKED_SIZE": _packed_size(config),
        "GRID_MLP_PACKED_SIZE": grid_mlp_packed_size(config),
    }


def unsupported(config: FieldConfig) -> str | None:
    """Why a GPU's kernels cannot run this field, or None if they can.  A CPU's take any."""
    if config.hidden % 16 or config.hidden > _MAX_HIDDEN:
        return f"hidden = {config.hidden} must be 16, 32, 48 or 64 for tensor cores"
    return None


def parameter_shapes(config: FieldConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of RadianceField.parameters(), in their order."""
    hidden, inputs = config.hidden, config.levels * config.features + CODE_WIDTH
    networks = {
        "density_net": [inputs, *[hidden] * config.density_layers, 1 + GEOMETRY_FEATURES],
        "colour_net": [GEOMETRY_FEATURES + config.direction_bands**2, *[hidden] * config.colour_layers, 3],
    }
    shapes: dict[str, tuple[int, ...]] = {"grid.table": (sum(level_rows(config)), config.features)}
    for name, widths in networks.items():
        for i, (taken, given) in enumerate(pairwise(widths)):
            shapes[f"{name}.{2 * i}.weight"], shapes[f"{name}.{2 * i}.bias"] = (given, taken), (given,)
    return shapes


def table_size(config: FieldConfig) -> int:
    """Numbers in the hash grid's table: the first ones of the flat vector."""
    return sum(level_rows(config)) * config.features


def parameter_count(config: FieldConfig) -> int:
    """Length of the flat vector."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def flatten(state: Mapping[str, torch.Tensor], config: FieldConfig) -> torch.Tensor:
    """The flat float32 vector of RadianceField.state_dict(), on the device of its tensors.

    Raises KeyError for a missing name and ValueError for a wrong shape.
    """
    parts = []
    for name, shape in parameter_shapes(config).items():
        if state[name].shape != shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, not {shape}")
        parts.append(state[name].detach().reshape(-1).float())
    return torch.cat(parts)


def unflatten(vector: torch.Tensor, config: FieldConfig) -> dict[str, torch.Tensor]:
    """Views of the flat vector by the names of RadianceField.state_dict()."""
    shapes = parameter_shapes(config)
    parts = vector.split([prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


class PackedField:
    """Weights as kernels read them.

    On a GPU they are fp16 copies in memory of their own, the networks in the order in which tensor cores take them; on
    a CPU kernels read the float32 vector itself, so what changes it changes the field.

    Attributes:
        table: (rows * features,) of kernels.storage. weights: what kernels take; replaced by `load` on a CPU only.
    """

    table: torch.Tensor
    weights: Struct

    def __init__(self, kernels: Kernels, config: FieldConfig) -> None:
        """Raises ValueError on a GPU if `unsupported` has a reason."""
        self._kernels, self._split = kernels, table_size(config)
        self._copies = kernels.device.type == "cuda"
        if self._copies:
            if reason := unsupported(config):
                raise ValueError(reason)
            self._networks = torch.zeros(_packed_size(config), dtype=kernels.storage, device=kernels.device)
            layers = config.density_layers + config.colour_layers
            self._biases = torch.zeros(layers * config.hidden + 24, device=kernels.device)
            table = torch.zeros(self._split, dtype=kernels.storage, device=kernels.device)
            self._point_at(table, self._networks, self._biases)
        else:
            self.load(torch.zeros(parameter_count(config)))

    def load(self, vector: torch.Tensor) -> None:
        """Take over the flat vector of parameters.  On a GPU: two launches, no allocation, no wait."""
        if self._copies:
            self.table.copy_(vector[: self._split])
            self.pack(vector)
        else:
            table, networks = vector.split([self._split, len(vector) - self._split])
            self._point_at(table, networks, networks)

    def pack(self, vector: torch.Tensor) -> None:
        """Take over the networks alone (an optimiser's step writes ``table`` itself).  Nothing to do on a CPU."""
        if self._copies:
            count = len(self._networks) // 2 + len(self._biases)
            self._kernels.launch("pack_networks", vector[self._split :], self._networks, self._biases, items=count)

    def _point_at(self, table: torch.Tensor, networks: torch.Tensor, biases: torch.Tensor) -> None:
        self.table = table
        self.weights = self._kernels.struct("FieldWeights", table=table, networks=networks, biases=biases)


def _input_registers(config: FieldConfig) -> int:
    """Pairs of the density network's inputs that a lane holds of a sample (cuda/field.cuh); an even number."""
    pairs = -(-config.levels // 4) * (config.features // 2) + -(-CODE_WIDTH // 8)
    return pairs + pairs % 2


def _packed_size(config: FieldConfig) -> int:
    """fp16 numbers of the packed networks; cuda/field.cuh asserts that it agrees."""
    hidden, grid = config.hidden // 8, -(-config.levels // 4) * (config.features // 2)
    inner = (config.density_layers + config.colour_layers - 2) * (hidden // 2) * hidden
    forward = _input_registers(config) // 2 * hidden + hidden + 2 * hidden + hidden // 2 + inner
    backward = hidden // 2 * grid + hidden + hidden + hidden + inner
    return 128 * (forward + backward)


def grid_mlp_packed_size(config: FieldConfig) -> int:
    """fp16 numbers of the packed network of cuda/grid_mlp.cu."""
    hidden, grid = config.hidden // 8, -(-config.levels // 4) * (config.features // 2)
    forward = -(-grid // 2) * hidden + hidden // 2 * hidden + hidden
    return 128 * (forward + hidden + hidden // 2 * hidden + hidden // 2 * grid)

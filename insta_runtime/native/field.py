"""The radiance field in kernel layout: compile-time constants, flat parameter vector, packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from math import prod

import torch

from insta_runtime.config import FieldConfig
from insta_runtime.field.expression_code import CODE_WIDTH, MOUTH_WIDTH, REGION_WIDTH
from insta_runtime.field.hashgrid import level_resolutions, level_rows
from insta_runtime.field.radiance import (
    GEOMETRY_FEATURES,
    INITIAL_LOG_DENSITY,
    MAX_LOG_DENSITY,
)
from insta_runtime.native.kernels import Constant, Kernels, Struct

LOSS_SCALE = 16384.0
"""Factor by which gradients are scaled in the backward pass, so that those of single samples are representable in fp16.

The gradient of one sample is about 1e-7 of a step's mean loss and must stay below 65504 / LOSS_SCALE = 4."""

_MAX_HIDDEN = 64  # limited by the registers of the backward pass


def field_constants(config: FieldConfig, code: str = "faded") -> dict[str, Constant]:
    """Compile-time constants of the field's kernels (cuda/hashgrid.cuh, cuda/field.cuh).

    ``code`` is `ConditioningConfig.code`, the kind of expression code.
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
        "REGION_WIDTH": CODE_WIDTH if code == "lips" else REGION_WIDTH,
        "CODE_OUTSIDE": int(code == "lips"),
        "GEOMETRY": GEOMETRY_FEATURES,
        "MAX_LOG_DENSITY": MAX_LOG_DENSITY,
        "INITIAL_LOG_DENSITY": INITIAL_LOG_DENSITY,
        "LOSS_SCALE": LOSS_SCALE,
        "PACKED_SIZE": _packed_size(config),
        "GRID_MLP_PACKED_SIZE": grid_mlp_packed_size(config),
    }


def unsupported(config: FieldConfig) -> str | None:
    """Reason why the GPU kernels cannot run a field of this configuration, None if they can.  CPU kernels run any."""
    if config.hidden % 16 or config.hidden > _MAX_HIDDEN:
        return f"avatar.radiance.hidden = {config.hidden} is not supported by the GPU kernels: choose 16, 32, 48 or 64"
    return None


def parameter_shapes(config: FieldConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of `RadianceField`, in the order of the flat vector."""
    hidden, inputs = config.hidden, config.levels * config.features + CODE_WIDTH
    networks = {
        "density_net": [inputs, *[hidden] * config.density_layers, 1 + GEOMETRY_FEATURES],
        "colour_net": [GEOMETRY_FEATURES + config.direction_bands**2, *[hidden] * config.colour_layers, 3],
    }
    shapes: dict[str, tuple[int, ...]] = {"grid.table": (sum(level_rows(config)), config.features)}
    for name, widths in networks.items():
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            shapes[f"{name}.{2 * i}.weight"], shapes[f"{name}.{2 * i}.bias"] = (fan_out, fan_in), (fan_out,)
    return shapes


def table_size(config: FieldConfig) -> int:
    """Number of values in the hash grid's table, which come first in the flat vector."""
    return sum(level_rows(config)) * config.features


def parameter_count(config: FieldConfig) -> int:
    """Length of the flat parameter vector of a field."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def flatten(state: Mapping[str, torch.Tensor], config: FieldConfig) -> torch.Tensor:
    """Concatenate ``state``, a `RadianceField.state_dict`, into the flat float32 vector, on the device of its tensors.

    Raises KeyError for a missing name and ValueError for a wrong shape.
    """
    parts = []
    for name, shape in parameter_shapes(config).items():
        if state[name].shape != shape:
            raise ValueError(
                f"parameter {name} has the shape {tuple(state[name].shape)}; the configuration needs {shape}"
            )
        parts.append(state[name].detach().reshape(-1).float())
    return torch.cat(parts)


def unflatten(vector: torch.Tensor, config: FieldConfig) -> dict[str, torch.Tensor]:
    """Views into the flat vector by parameter name, as a `RadianceField.state_dict`."""
    shapes = parameter_shapes(config)
    parts = vector.split([prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


class PackedField:
    """Weights of a radiance field in kernel layout.

    On a GPU they are fp16 copies, with the networks in the order of tensor-core fragments.  On a CPU kernels read the
    float32 vector that was loaded last, so that later changes of the vector change the field.

    Attributes:
        table: (rows * features,) values of the hash grid, of dtype ``kernels.storage``.
        weights: the ``FieldWeights`` struct that is passed to kernels; on a CPU `load` replaces it.
    """

    table: torch.Tensor
    weights: Struct

    def __init__(self, kernels: Kernels, config: FieldConfig) -> None:
        """Allocates zero weights.  Raises ValueError on a GPU if the configuration is `unsupported`."""
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
        """Load the flat parameter vector.  On a GPU: two launches, without allocation or wait."""
        if self._copies:
            self.table.copy_(vector[: self._split])
            self.pack(vector)
        else:
            table, networks = vector.split([self._split, len(vector) - self._split])
            self._point_at(table, networks, networks)

    def pack(self, vector: torch.Tensor) -> None:
        """Load only the networks of the flat vector (the Adam kernel writes ``table`` itself).  No effect on a CPU."""
        if self._copies:
            count = len(self._networks) // 2 + len(self._biases)
            self._kernels.launch("pack_networks", vector[self._split :], self._networks, self._biases, items=count)

    def _point_at(self, table: torch.Tensor, networks: torch.Tensor, biases: torch.Tensor) -> None:
        self.table = table
        self.weights = self._kernels.struct("FieldWeights", table=table, networks=networks, biases=biases)


def _input_registers(config: FieldConfig) -> int:
    """Number of input pairs of the density network that a lane holds for one sample (cuda/field.cuh); even."""
    pairs = -(-config.levels // 4) * (config.features // 2) + -(-CODE_WIDTH // 8)
    return pairs + pairs % 2


def _packed_size(config: FieldConfig) -> int:
    """Number of fp16 values of the packed networks; cuda/field.cuh asserts the same number."""
    hidden, grid = config.hidden // 8, -(-config.levels // 4) * (config.features // 2)
    inner = (config.density_layers + config.colour_layers - 2) * (hidden // 2) * hidden
    forward = _input_registers(config) // 2 * hidden + hidden + 2 * hidden + hidden // 2 + inner
    backward = hidden // 2 * grid + hidden + hidden + hidden + inner
    return 128 * (forward + backward)


def grid_mlp_packed_size(config: FieldConfig) -> int:
    """Number of fp16 values of the packed network of cuda/grid_mlp.cu."""
    hidden, grid = config.hidden // 8, -(-config.levels // 4) * (config.features // 2)
    forward = -(-grid // 2) * hidden + hidden // 2 * hidden + hidden
    return 128 * (forward + hidden + hidden // 2 * hidden + hidden // 2 * grid)

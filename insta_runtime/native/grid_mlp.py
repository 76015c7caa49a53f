"""Network for benchmarks, computed by native kernels: a hash grid and an MLP of two hidden layers."""

from __future__ import annotations

import torch

from insta_runtime.config import FieldConfig
from insta_runtime.native.field import field_constants, grid_mlp_packed_size, table_size
from insta_runtime.native.kernels import Kernels

OUTPUTS = 16
"""Number of outputs of the benchmark network."""
_RESIDENT_THREADS = 2048  # maximum number of resident threads of a multiprocessor


class GridMlp:
    """Hash-grid encoding, two hidden ReLU layers and 16 outputs, without biases (cuda/grid_mlp.cu).

    Evaluates ``count`` points at a time, in buffers that are allocated once.

    Attributes:
        kernels: kernels compiled for this configuration.
        outputs: (count, 16) outputs of the last forward pass.
        table_gradients, network_gradients: flat float32 gradients of the last backward pass, times LOSS_SCALE.
    """

    def __init__(self, config: FieldConfig, device: torch.device, count: int) -> None:
        self.kernels = kernels = Kernels(device, field_constants(config))
        self._on_gpu, self._count = device.type == "cuda", count
        self._networks = torch.zeros(self._network_size(config), device=device)
        if self._on_gpu:
            packed = torch.zeros(grid_mlp_packed_size(config), dtype=kernels.storage, device=device)
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        else:
            packed, processors = self._networks, 1
        self._packed, self._processors = packed, processors
        self._table = torch.zeros(table_size(config), dtype=kernels.storage, device=device)
        self._weights = kernels.struct("FieldWeights", table=self._table, networks=packed, biases=None)
        self.table_gradients = torch.zeros(table_size(config), device=device)
        self.network_gradients = torch.zeros_like(self._networks)
        self._encoded = torch.zeros(count * config.levels * config.features, dtype=kernels.storage, device=device)
        self._encoded_gradients = torch.zeros_like(self._encoded)
        self.outputs = torch.zeros((count, OUTPUTS), dtype=kernels.storage, device=device)
        self._totals = torch.tensor([count, count, 0, 0], dtype=torch.int32, device=device)

    @staticmethod
    def _network_size(config: FieldConfig) -> int:
        return config.hidden * (config.levels * config.features + config.hidden + OUTPUTS)

    def load(self, table: torch.Tensor, networks: torch.Tensor) -> None:
        """Load flat float32 weights: of the table, and of the layers one after another, each (outputs, inputs)."""
        self._table.copy_(table)
        self._networks.copy_(networks)
        if self._on_gpu:
            self.kernels.launch("pack_grid_mlp", self._networks, self._packed, items=len(self._packed) // 2)

    def infer(self, points: torch.Tensor) -> torch.Tensor:
        """Outputs (count, 16) at points (count, 3) in the unit cube; the next call overwrites them."""
        return self._forward(points, None)

    def infer_by_levels(self, points: torch.Tensor) -> torch.Tensor:
        """As `infer`, but encodes all points level by level before it runs the network.  GPU only."""
        count = self._count
        self.kernels.launch(
            "grid_encode", self._weights, points, self._encoded, count, items=_RESIDENT_THREADS * self._processors // 2
        )
        self.kernels.launch("grid_mlp_outputs", self._weights, self._encoded, self.outputs, count, items=count)
        return self.outputs

    def train(self, points: torch.Tensor, gradient: torch.Tensor) -> None:
        """Run forward and backward pass; ``gradient`` (count, 16) float32 is that of the outputs."""
        self._forward(points, self._encoded)
        self.backward(points, gradient)

    def backward(self, points: torch.Tensor, gradient: torch.Tensor) -> None:
        """Compute the gradients of all weights; a forward pass of `train` must have run before."""
        self.table_gradients.zero_()
        self.network_gradients.zero_()
        arguments = (self._encoded, gradient, self.network_gradients, self._encoded_gradients, self._count)
        self.kernels.launch("grid_mlp_backward", self._weights, *arguments, items=512 * self._processors)
        unused = dict.fromkeys(
            ("first", "steps", "step_ray", "step_t", "slot", "direction", "masks", "frame", "histogram")
        )
        samples = self.kernels.struct(
            "Samples", position=points, totals=self._totals, capacity=self._count, max_steps=0, max_samples=0, **unused
        )
        self.kernels.launch(
            "grid_backward",
            samples,
            self._encoded_gradients,
            self.table_gradients,
            items=_RESIDENT_THREADS * self._processors // 2,
        )

    def _forward(self, points: torch.Tensor, encoded: torch.Tensor | None) -> torch.Tensor:
        self.kernels.launch(
            "grid_mlp_forward", self._weights, points, encoded, self.outputs, self._count, items=self._count
        )
        return self.outputs

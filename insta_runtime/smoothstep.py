"""Smoothstep: the cubic Hermite ramp ``3 t^2 - 2 t^3``, for numbers, numpy arrays and torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value", float, np.float32, NDArray[np.float32], NDArray[np.float64], NDArray[Any], "torch.Tensor")


def smoothstep(x: Value, low: float = 0.0, high: float = 1.0) -> Value:
    """Cubic smoothstep of ``x``: 0 at ``low``, 1 at ``high`` (which may be smaller), constant outside; elementwise."""
    t: Any = (x - low) / (high - low)
    t = min(max(t, 0.0), 1.0) if isinstance(t, float) else t.clip(0.0, 1.0)
    smooth: Value = t * t * (3.0 - 2.0 * t)
    return smooth

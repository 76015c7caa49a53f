"""Validation of the arrays of a head model file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError


def check_numbers(
    name: str, arrays: Mapping[str, NDArray[Any]], faces: NDArray[Any], skin_weights: NDArray[Any], vertices: int
) -> None:
    """Check that the arrays of the head model file ``name`` make a mesh that can be posed; raises UserError.

    All ``arrays`` must be finite, ``faces`` (F, 3) must refer to existing vertices, and the rows of ``skin_weights``
    (V, J) must be non-negative with sum 1.
    """
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} is not a usable head model: its {key} holds numbers that are not finite")
    if faces.min() < 0 or faces.max() >= vertices:
        raise UserError(f"{name} is not a usable head model: its triangles refer to vertices that do not exist")
    if skin_weights.min() < -1e-3 or np.abs(skin_weights.sum(1) - 1.0).max() > 1e-3:
        raise UserError(f"{name} is not a usable head model: its skin weights are not non-negative with sum 1")

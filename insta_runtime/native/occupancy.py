"""The canonical occupancy grid in the layout that kernels read (``OccupancyCells`` of cuda/layout.cuh)."""

from __future__ import annotations

import torch

from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.render.occupancy import OccupancyGrid


def occupancy_struct(kernels: Kernels, grid: OccupancyGrid, state: dict[str, torch.Tensor]) -> Struct:
    """The candidate cells of ``grid`` as an ``OccupancyCells`` struct that reads and writes the tensors of ``state``.

    ``state`` has the tensors of `OccupancyGrid.state`, of ``grid`` itself or of another grid with the same cells.  The
    field ``dense`` is zero until the kernel ``threshold_occupancy`` has run.
    """
    words = -(-(grid.config.resolution**3) // 32)
    return kernels.struct(
        "OccupancyCells",
        cells=grid.cells.int(),
        triangle=grid.triangle.int(),
        masks=grid.masks.contiguous(),
        occupied=grid.occupied.to(torch.uint8),
        dense=torch.zeros(words, dtype=torch.int32, device=grid.cells.device),
        count=len(grid.cells),
        resolution=grid.config.resolution,
        value=state["value"],
        view_count=state["view_count"],
        matte_count=state["matte_count"],
        visibility=state["visibility"],
        index_of_cell=grid.place,
    )

"""Narrow-band kernels against `OccupancyGrid.posed`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insta_runtime.native.kernels import Struct
from insta_runtime.native.occupancy import occupancy_struct
from insta_runtime.native.posing import PosedHeads
from tests.support.posed_person import POISON, Posed, model_of, poison, random_state, run

BORDER = 2e-3  # share of cells that may differ because a warped point lies on their side, within rounding


@pytest.fixture
def posed(device: torch.device) -> Posed:
    model = model_of(device)
    return run(model, [random_state(model.head, seed) for seed in (7, 8)])


def marked(posed: Posed, frame: int) -> torch.Tensor:
    """(resolution^3,) bool."""
    words = posed.array("bits")[frame].cpu().numpy().view(np.uint8)
    cells = posed.heads.head.value.resolution**3
    bits = np.unpackbits(words, bitorder="little")
    assert not bits[cells:].any()
    return torch.from_numpy(bits[:cells].astype(bool)).to(posed.model.device)


def test_marked_cells_are_those_of_the_torch_reference(posed: Posed) -> None:
    for frame, twin in enumerate(posed.twins()):
        wanted = posed.model.occupancy.posed(twin)
        assert float((marked(posed, frame) ^ wanted).sum()) <= BORDER * float(wanted.sum())


def test_every_marked_cell_has_a_row(posed: Posed) -> None:
    resolution = posed.heads.head.value.resolution
    for frame in range(2):
        cells = marked(posed, frame).nonzero()[:, 0]
        assert int(posed.heads.count[frame]) == len(cells)
        listed = posed.array("cell")[frame, : len(cells)]
        assert torch.equal(listed.long().sort().values, cells)
        rows = posed.array("row")[frame][listed.long()]
        assert torch.equal(rows.long(), torch.arange(len(cells), device=rows.device))
        xyz = torch.stack([cells % resolution, cells // resolution % resolution, cells // resolution**2], dim=-1)
        assert posed.array("bounds")[frame].tolist() == [*xyz.amin(0).tolist(), *xyz.amax(0).tolist()]


def empty(space: Struct) -> Struct:
    tensor = space.tensors["occupied"]
    assert isinstance(tensor, torch.Tensor)
    tensor.zero_()
    return space


def test_without_occupied_cells_nothing_is_marked(posed: Posed) -> None:
    heads = posed.heads
    heads.run(empty(occupancy_struct(heads.kernels, posed.model.occupancy, posed.model.occupancy.state())))
    resolution = heads.head.value.resolution
    assert heads.count.tolist() == [0, 0]
    assert not posed.array("bits").any()
    assert posed.array("bounds").tolist() == [[resolution] * 3 + [-1] * 3] * 2


def test_cells_beyond_the_capacity_are_counted_and_have_no_row(posed: Posed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written behind a frame's rows, and `is_marked` returns false for these cells."""
    monkeypatch.setattr("insta_runtime.native.posing.BAND_SHARE", 0.01)
    kernels, model = posed.heads.kernels, posed.model
    few = PosedHeads(kernels, model, 2)
    state = few.states
    few.states.copy_(posed.heads.states)
    poison(few.poses)
    state.copy_(posed.heads.states)
    few.run(occupancy_struct(kernels, model.occupancy, model.occupancy.state()))
    assert torch.equal(few.count, posed.heads.count)
    assert few.capacity < int(few.count.min())
    short = Posed(few, posed.states, model)
    for frame in range(2):
        cells = marked(short, frame).nonzero()[:, 0]
        rows = short.array("row")[frame][cells]
        assert sorted(rows[rows >= 0].tolist()) == list(range(few.capacity))
        assert set(rows[rows < 0].tolist()) == {-1}
        assert bool((short.array("cell")[frame] != POISON).all())
        lost = cells[rows < 0][:50]
        warp = model.warp
        points = warp.box.cell_centres(lost, warp.resolution).contiguous()
        triangle = torch.full((len(points),), POISON, dtype=torch.int32, device=kernels.device)
        barycentrics, distance = torch.full_like(points, torch.nan), torch.full_like(points[:, 0], torch.nan)
        arguments = (few.head, few.poses, frame, points, len(points), triangle, barycentrics, distance)
        kernels.launch("nearest_query", *arguments, items=len(points))
        assert set(triangle.tolist()) == {-1}
        assert bool(distance.isinf().all())

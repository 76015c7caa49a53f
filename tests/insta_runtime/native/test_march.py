"""Kernels for packed samples against `sampling.march`, and behaviour at the capacity limit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from insta_runtime.config import SamplingConfig
from insta_runtime.geometry import camera_vertices
from insta_runtime.native.constants import avatar_constants
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.occupancy import occupancy_struct
from insta_runtime.native.posing import PosedHeads, pack_state
from insta_runtime.native.sampling import PackedSamples
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.raster import rasterise
from insta_runtime.render.rays import Rays, farthest_around, pixel_rays
from insta_runtime.render.sampling import march
from insta_runtime.types import Camera, HeadState
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, pose

VIEW = camera(24)
PIXELS = VIEW.width * VIEW.height
BORDER = 0.01  # share of samples that may differ because they lie on the side of a cell, within rounding
ELSEWHERE = 0.15  # share that may belong to another triangle, as the two choose candidates differently
ROUNDING = 5e-5  # of positions in the unit cube and of unit vectors
SAMPLING = SMALL.sampling


@cache
def thinned_model(device: torch.device) -> AvatarModel:
    """A model with a random third of its canonical cells empty."""
    model = AvatarModel(open_head(), neutral_shape(open_head()), SMALL, device)
    state = model.occupancy.state()
    state["value"][torch.rand(len(state["value"]), device=device) < 0.3] = 0.0
    model.occupancy.load(state)
    return model


def space_of(kernels: Kernels, model: AvatarModel) -> Struct:
    """The model's occupancy grid in kernel layout."""
    occupancy = model.occupancy
    bits = np.packbits(occupancy.dense.cpu().numpy(), bitorder="little")
    dense = np.pad(bits, (0, -len(bits) % 4)).view(np.int32)
    space = occupancy_struct(kernels, occupancy, occupancy.state())
    space.tensor("dense").copy_(torch.from_numpy(dense))
    return space


def mesh_depth(model: AvatarModel, state: HeadState, view: Camera) -> torch.Tensor:
    vertices = model.rig.pose(model.shape, state).vertices
    return rasterise(camera_vertices(vertices, state), model.rig.faces, view).depth.reshape(-1)


@dataclass
class Bench:
    """Rays of all pixels for several states, for kernels and for the torch reference."""

    model: AvatarModel
    kernels: Kernels
    heads: PosedHeads
    space: Struct
    rays: Struct
    twin: list[Rays]

    def packed(self, capacity: int, config: SamplingConfig = SAMPLING) -> dict[str, torch.Tensor]:
        """Samples of all rays, in buffers that were filled with invalid values."""
        packed = PackedSamples(self.kernels, self.heads, self.space, self.rays, config, capacity)
        for tensor in packed.samples.tensors.values():
            if isinstance(tensor, torch.Tensor):
                tensor.fill_(-7 if tensor.dtype == torch.int32 else torch.nan)
        packed.run()
        return {name: t.cpu() for name, t in packed.samples.tensors.items() if isinstance(t, torch.Tensor)}


def bench(device: torch.device, states: list[HeadState], view: Camera = VIEW) -> Bench:
    model = thinned_model(device)
    kernels = Kernels(device, avatar_constants(SMALL))
    heads = PosedHeads(kernels, model, len(states))
    heads.states.copy_(torch.stack([torch.from_numpy(pack_state(model, state, view)) for state in states]))
    space = space_of(kernels, model)
    heads.run(space)
    pixels = torch.arange(PIXELS, device=device)
    twin, parts = [], []
    for i, state in enumerate(states):
        depth = mesh_depth(model, state, view)
        far = farthest_around(depth.view(view.height, view.width)).view(-1)
        twin.append(pixel_rays(state, view, pixels, far, SMALL.sampling.behind))
        one = PosedHeads(kernels, model, 1)
        one.states.copy_(heads.states[i : i + 1])
        one.run(space)
        parts.append(rays_of(kernels, one, depth, view))
        parts[-1]["frame"].fill_(i)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    rays = kernels.struct("Rays", **joined, count=len(joined["frame"]))
    return Bench(model, kernels, heads, space, rays, twin)


def rays_of(kernels: Kernels, heads: PosedHeads, depth: torch.Tensor, view: Camera) -> dict[str, torch.Tensor]:
    """All rays of one pose by camera_rays, in buffers that were filled with invalid values."""
    count, device = view.width * view.height, kernels.device
    parts = {name: torch.full(shape, torch.nan, device=device) for name, shape in ray_shapes(count).items()}
    frame = torch.full((count,), -7, dtype=torch.int32, device=device)
    rays = kernels.struct("Rays", **parts, frame=frame, count=count)
    kernels.launch(
        "camera_rays", heads.head, heads.poses, depth, rays, SAMPLING.step, view.width, view.height, items=count
    )
    return {**parts, "frame": frame}


def ray_shapes(count: int) -> dict[str, tuple[int, ...]]:
    return {"origin": (count, 4), "direction": (count, 4), "offset": (count,)}


def step_number(distance: float) -> int:
    """Step number at a distance, for the sample offset anchored in the head of `pose`."""
    eye = float(np.linalg.norm(pose(open_head()).translation))
    return round(distance / SAMPLING.step - (eye / SAMPLING.step + 0.5) % 1.0)


def kept_steps(samples: dict[str, torch.Tensor], limit: int) -> dict[tuple[int, int], int]:
    """Slots of the first ``limit`` samples of each ray, by ray and step number."""
    kept = {}
    for ray, (first, steps) in enumerate(zip(samples["first"].tolist(), samples["steps"].tolist(), strict=True)):
        places = range(first, first + steps)
        distances = [float(samples["step_t"][j]) for j in places]
        assert distances == sorted(distances)
        assert all(int(samples["step_ray"][j]) == ray for j in places)
        slots = [(t, int(samples["slot"][j])) for t, j in zip(distances, places, strict=True)]
        for t, slot in [pair for pair in slots if pair[1] >= 0][:limit]:
            kept[ray, step_number(t)] = slot
    return kept


def test_samples_are_those_of_the_torch_reference(device: torch.device) -> None:
    states = [pose(open_head(), jaw=0.6, yaw=0.3), pose(open_head(), smile=1.0, yaw=-0.4)]
    it = bench(device, states)
    ours = it.packed(40 * PIXELS)
    kept = kept_steps(ours, SAMPLING.max_samples)
    theirs: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}
    for i, (state, rays) in enumerate(zip(states, it.twin, strict=True)):
        truth = march(rays, it.model.pose(state), it.model.occupancy, SAMPLING)
        for n, (ray, t) in enumerate(zip(truth.ray.tolist(), truth.distance.tolist(), strict=True)):
            values = truth.position[n].cpu(), truth.direction[n].cpu(), truth.masks[n].cpu()
            theirs[i * PIXELS + ray, step_number(t)] = values
    assert len(theirs) > 2000
    assert len(kept.keys() ^ theirs.keys()) < BORDER * len(theirs)
    common = sorted(kept.keys() & theirs.keys())
    slots = torch.tensor([kept[key] for key in common])
    assert torch.equal(ours["frame"][slots], torch.tensor([key[0] // PIXELS for key in common], dtype=torch.int32))
    for k, name in enumerate(("position", "direction", "masks")):
        truth_values = torch.stack([theirs[key][k] for key in common])
        error = (ours[name][slots] - truth_values).abs().amax(dim=-1)
        assert (error > ROUNDING).float().mean() < ELSEWHERE, name
    steps, samples, dropped, limit = ours["totals"].tolist()
    assert (steps, dropped, limit) == (int(ours["steps"].sum()), 0, len(ours["histogram"]) - 1)
    assert sorted(ours["slot"][ours["slot"] >= 0].tolist()) == list(range(samples))


def test_every_ray_has_its_own_offset(device: torch.device) -> None:
    it = bench(device, [pose(open_head())])
    offset = it.rays.tensors["offset"]
    assert isinstance(offset, torch.Tensor)
    assert len(offset.unique()) == 2, "one offset for all rays that may meet the head, one for the others"
    offset.uniform_(0.0, 1.0)
    samples = it.packed(40 * PIXELS)
    steps = samples["totals"][0]
    lattice = samples["step_t"][:steps] / SAMPLING.step - offset.cpu()[samples["step_ray"][:steps].long()]
    torch.testing.assert_close(lattice, lattice.round(), atol=2e-4, rtol=0.0)


@pytest.mark.parametrize("share", [0.7, 0.3, 0.05])
def test_at_the_capacity_limit_the_nearest_steps_of_every_ray_are_kept(device: torch.device, share: float) -> None:
    it = bench(device, [pose(open_head(), yaw=0.2)])
    every = it.packed(40 * PIXELS)
    wanted = int(every["totals"][0])
    capacity = int(share * wanted)
    fewer = it.packed(capacity)
    steps, _, dropped, limit = fewer["totals"].tolist()
    assert steps <= capacity
    assert steps + dropped == wanted
    assert torch.equal(fewer["steps"], every["steps"].clamp(max=limit)), "the longest rays are cut to a common length"
    assert int(every["steps"].clamp(max=limit + 1).sum()) > capacity, "one more step would not have fitted"
    for ray in range(0, PIXELS, 7):
        count = int(fewer["steps"][ray])
        ours, full = int(fewer["first"][ray]), int(every["first"][ray])
        assert torch.equal(fewer["step_t"][ours : ours + count], every["step_t"][full : full + count])


def test_rays_that_miss_have_no_samples(device: torch.device) -> None:
    aside = VIEW.cropped(5000.0, 0.0, VIEW.width, VIEW.height)
    behind = pose(open_head())
    behind.translation[2] = -0.6
    for state, view in ((pose(open_head()), aside), (behind, VIEW)):
        it = bench(device, [state], view)
        samples = it.packed(100)
        assert not samples["steps"].any()
        assert samples["totals"][:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_nan_state_gives_rays_that_miss(device: torch.device, poison: float) -> None:
    it = bench(device, [pose(open_head())])
    for number in (len(open_head().expression_names) + k for k in (14, 23, 28)):  # rotation, translation, cx
        heads = PosedHeads(it.kernels, it.model, 1)
        heads.states.copy_(it.heads.states)
        heads.run(it.space)
        heads.states[0, number] = poison
        depth = torch.full((PIXELS,), torch.inf, device=device)
        rays = rays_of(it.kernels, heads, depth, VIEW)
        assert (rays["direction"][:, 3] < rays["origin"][:, 3]).all()
        assert rays["direction"].isfinite().all()


def test_the_maximum_numbers_of_steps_and_samples_hold(device: torch.device) -> None:
    it = bench(device, [pose(open_head())])
    depth = mesh_depth(it.model, pose(open_head()), VIEW)
    assert torch.isfinite(depth).any()
    nothing = it.packed(0)
    assert nothing["totals"][0] == 0
    assert not nothing["steps"].any()
    one = it.packed(PIXELS)
    assert (one["steps"] <= one["totals"][3]).all()

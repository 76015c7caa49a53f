"""Ray marching through the posed cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from insta_runtime.geometry import camera_vertices
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.raster import rasterise
from insta_runtime.render.rays import Rays, pixel_rays, slant
from insta_runtime.render.sampling import RaySamples, march
from tests.support.small_person import SMALL, camera, open_head, pose, small_model

STATE, VIEW = pose(open_head(), jaw=0.3, yaw=0.25), camera(40)
PIXELS = torch.arange(40 * 40)


@pytest.fixture(scope="module")
def model() -> AvatarModel:
    return small_model()


@pytest.fixture(scope="module")
def depth(model: AvatarModel) -> torch.Tensor:
    return rasterise(camera_vertices(model.pose(STATE).vertices, STATE), model.rig.faces, VIEW).depth.view(-1)


def sample(model: AvatarModel, rays: Rays, seed: int | None = None, **changes: float) -> RaySamples:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return march(rays, model.pose(STATE), model.occupancy, replace(SMALL.sampling, **changes), generator)


@pytest.fixture(scope="module")
def rays(depth: torch.Tensor) -> Rays:
    return pixel_rays(STATE, VIEW, PIXELS, depth, SMALL.sampling.behind)


@pytest.mark.parametrize("seed", [None, 5])
def test_samples_are_sorted_and_a_step_apart(model: AvatarModel, rays: Rays, seed: int | None) -> None:
    samples = sample(model, rays, seed)
    assert len(samples.ray) > 1000
    ahead = samples.distance.diff()[samples.ray.diff() == 0] / SMALL.sampling.step
    assert (samples.ray.diff() >= 0).all()
    assert ahead.min() > 0.99
    torch.testing.assert_close(ahead, ahead.round(), atol=1e-2, rtol=0)
    assert samples.direction.norm(dim=-1).sub(1.0).abs().max() < 1e-5


def test_samples_lie_in_occupied_cells(model: AvatarModel, rays: Rays) -> None:
    samples, n = sample(model, rays), SMALL.occupancy.resolution
    x, y, z = (samples.position * n).long().unbind(-1)
    assert samples.position.min() >= 0
    assert samples.position.max() < 1
    assert model.occupancy.dense[(z * n + y) * n + x].all()


def test_every_pixel_of_the_head_is_sampled_and_rays_end_behind_the_mesh(
    model: AvatarModel, rays: Rays, depth: torch.Tensor
) -> None:
    samples = sample(model, rays)
    surface = depth * slant(VIEW, PIXELS)
    covered = torch.zeros(len(PIXELS), dtype=torch.bool)
    # A sample within two steps of the surface is needed to render the skin.
    covered[samples.ray[(samples.distance - surface[samples.ray]).abs() < 2 * SMALL.sampling.step]] = True
    assert covered[depth.isfinite()].all()
    assert (samples.distance < surface[samples.ray] + SMALL.sampling.behind).all()
    past = samples.distance > surface[samples.ray]
    assert past.any()


def test_beyond_the_limit_the_farthest_samples_are_dropped(model: AvatarModel, rays: Rays) -> None:
    all_of_them, few = sample(model, rays, max_samples=1000), sample(model, rays, max_samples=5)
    count = torch.bincount(all_of_them.ray, minlength=len(rays))
    assert count.max() > 5
    assert torch.equal(torch.bincount(few.ray, minlength=len(rays)), count.clamp(max=5))
    rank = torch.arange(len(all_of_them.ray)) - (count.cumsum(0) - count)[all_of_them.ray]
    assert torch.equal(few.distance, all_of_them.distance[rank < 5])
    assert torch.equal(few.position, all_of_them.position[rank < 5])


def test_a_still_head_is_sampled_identically_and_training_jitters(model: AvatarModel, rays: Rays) -> None:
    still, again = sample(model, rays), sample(model, rays)
    assert torch.equal(still.position, again.position)
    first, same, other = sample(model, rays, 1), sample(model, rays, 1), sample(model, rays, 2)
    assert torch.equal(first.distance, same.distance)
    eye = rays.origins[0].norm()
    phase = [((s.distance - eye) / SMALL.sampling.step) % 1.0 for s in (still, first, other)]
    torch.testing.assert_close(phase[0], torch.full_like(phase[0], 0.5), atol=1e-2, rtol=0)
    assert phase[1].std() > 0.2
    assert phase[1].mean() != phase[2].mean()


@pytest.mark.parametrize("nearer", [0.001, 0.003, 0.0055])
def test_samples_move_with_a_head_that_changes_its_distance(model: AvatarModel, nearer: float) -> None:
    """Otherwise noise in the tracked distance would shift the sampling pattern over the face."""
    middle = PIXELS.view(40, 40)[18:22, 18:22].reshape(-1)
    far = torch.full(middle.shape, 0.6)
    there = march(
        pixel_rays(STATE, VIEW, middle, far, SMALL.sampling.behind), model.pose(STATE), model.occupancy, SMALL.sampling
    )
    moved = replace(STATE, translation=STATE.translation - np.array([0.0, 0.0, nearer], np.float32))
    rays = pixel_rays(moved, VIEW, middle, far - nearer, SMALL.sampling.behind)
    here = march(rays, model.pose(moved), model.occupancy, SMALL.sampling)
    apart = torch.cdist(here.position, there.position).amin(dim=1) * model.warp.box.side
    assert apart.median() < 0.1 * SMALL.sampling.step


def test_rays_that_miss_and_an_empty_avatar_give_no_samples(model: AvatarModel, rays: Rays) -> None:
    away = Rays(rays.origins, -rays.directions, rays.far)
    ended = Rays(rays.origins, rays.directions, torch.full_like(rays.far, 0.1))
    none = Rays(rays.origins[:0], rays.directions[:0], rays.far[:0])
    empty = small_model()
    empty.occupancy.load(empty.occupancy.state() | {"value": torch.zeros_like(empty.occupancy.value)})
    for samples in (sample(model, away), sample(model, ended), sample(model, none), sample(empty, rays)):
        assert samples.ray.shape == samples.distance.shape == (0,)
        assert samples.position.shape == samples.direction.shape == (0, 3)
        assert samples.masks.shape == (0, 2)


def test_joined_bundles_renumber_their_rays(model: AvatarModel, rays: Rays) -> None:
    samples = sample(model, rays)
    joined = RaySamples.join([samples, samples], len(rays))
    assert torch.equal(joined.ray, torch.cat([samples.ray, samples.ray + len(rays)]))
    assert torch.equal(joined.position, samples.position.repeat(2, 1))

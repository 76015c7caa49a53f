"""Compositing and loss kernels against the torch reference and finite differences."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from insta_runtime.config import LearnConfig
from insta_runtime.field.radiance import MAX_LOG_DENSITY
from insta_runtime.learn.losses import RayTargets, ray_loss
from insta_runtime.native.kernels import Kernels, Struct
from insta_runtime.native.occupancy import occupancy_struct
from insta_runtime.render.compositing import Composite, composite
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.occupancy import IN_SIGHT
from tests.support.small_person import SMALL, neutral_shape, open_head

STEP = 0.004
LOSS_SCALE = 128.0
CONFIG = LearnConfig()
CONSTANTS = {
    "MAX_LOG_DENSITY": MAX_LOG_DENSITY,
    "LOSS_SCALE": LOSS_SCALE,
    "DEPTH_SLACK": CONFIG.depth_slack,
    "IN_SIGHT": IN_SIGHT,
}

# Rounding of sums of up to 100 float32 terms below one, and an exponential accurate to 2e-6.
VALUE = {"rtol": 1e-5, "atol": 2e-6}
# The same for differences of such sums times the thickness of a step (up to 32); gradients are about one.
GRADIENT = {"rtol": 1e-4, "atol": 2e-5}


@dataclass
class Bundle:
    """Rays with random packed samples, in the layout of kernels and in the order of the torch reference."""

    rays: Struct
    samples: Struct
    count: int
    capacity: int
    position: torch.Tensor  # (capacity, 3) in the unit cube, by slot
    raw: torch.Tensor  # (capacity, 4) log density and colour before the sigmoid, by slot, float64
    slot: torch.Tensor  # (N,) of the kept samples, by ray, front to back
    ray: torch.Tensor  # (N,)
    distance: torch.Tensor  # (N,)
    dropped: torch.Tensor  # slots beyond a ray's max_samples
    used: int  # total number of samples

    def field(self, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Density and colour of every slot."""
        return raw[:, 0].clamp(max=MAX_LOG_DENSITY).exp(), torch.sigmoid(raw[:, 1:])

    def seen(self, raw: torch.Tensor) -> Composite:
        """The result of the torch reference."""
        density, colour = self.field(raw)
        return composite(density[self.slot], colour[self.slot], self.distance.to(raw), self.ray, self.count, STEP)

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        density, colour = self.field(self.raw)
        return density.float().contiguous(), colour.float().contiguous()


def bundle(kernels: Kernels, steps: list[int], max_samples: int) -> Bundle:
    """Rays with the given numbers of ``steps``, 60 % of which hold a sample; random order in memory."""
    device, total = kernels.device, sum(steps)
    first = [0] * len(steps)
    place = 0
    for ray in torch.randperm(len(steps)).tolist():
        first[ray], place = place, place + steps[ray]
    has = torch.rand(total) < 0.6
    used, capacity = int(has.sum()), total + 7
    slot = torch.full((capacity,), -1, dtype=torch.int32)
    slot[:total][has] = torch.randperm(used, dtype=torch.int32)
    t = torch.full((capacity,), float("nan"))
    kept: list[torch.Tensor] = []
    ray_of: list[torch.Tensor] = []
    dropped: list[torch.Tensor] = []
    for ray, (begin, n) in enumerate(zip(first, steps, strict=True)):
        t[begin : begin + n] = 0.5 + (torch.arange(n) + torch.rand(())) * STEP
        where = begin + slot[begin : begin + n].ge(0).nonzero()[:, 0]
        kept.append(where[:max_samples])
        dropped.append(slot[where[max_samples:]].long())
        ray_of.append(torch.full((len(kept[-1]),), ray))
    order = torch.cat(kept)
    raw = torch.cat([torch.randn(capacity, 1) * 3.0 + 4.0, torch.randn(capacity, 3)], dim=-1).double()
    position = torch.rand(capacity, 3).to(device)
    none = dict.fromkeys(("step_ray", "direction", "masks", "frame", "histogram"))
    samples = kernels.struct(
        "Samples",
        first=torch.tensor(first, dtype=torch.int32, device=device),
        steps=torch.tensor(steps, dtype=torch.int32, device=device),
        step_t=t.to(device),
        slot=slot.to(device),
        position=position,
        totals=torch.tensor([total, used, 0, 0], dtype=torch.int32, device=device),
        capacity=capacity,
        max_steps=max([1, *steps]),
        max_samples=max_samples,
        **none,
    )
    rays = kernels.struct("Rays", origin=None, direction=None, offset=None, frame=None, count=len(steps))
    return Bundle(
        rays,
        samples,
        len(steps),
        capacity,
        position,
        raw.to(device),
        slot[order].long().to(device),
        torch.cat(ray_of).to(device),
        t[order].to(device),
        torch.cat(dropped).to(device),
        used,
    )


def targets_of(count: int, device: torch.device) -> RayTargets:
    alpha = torch.rand(count, 1)
    alpha[: count // 3] = 0.0
    alpha[count // 3 : 2 * count // 3] = 1.0
    rgba = torch.cat([torch.rand(count, 3) * alpha, alpha], dim=-1)
    depth = torch.where(torch.rand(count) < 0.5, 0.5 + 0.1 * torch.rand(count), 0.0)
    mouth = torch.rand(count) < 0.3
    return RayTargets(*(x.to(device) for x in (rgba, depth, mouth, torch.rand(count, 3))))


def loss_of(kernels: Kernels, rays: Bundle, targets: RayTargets, density: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Run `composite_loss`: the loss and (capacity, 4) gradients, NaN where nothing was written."""
    _, colour = rays.inputs()
    gradient = torch.full((rays.capacity, 4), float("nan"), device=kernels.device)
    loss = torch.zeros(1, device=kernels.device)
    weight = 1.0 + (CONFIG.mouth_weight - 1.0) * targets.mouth.float()
    kernels.launch(
        "composite_loss",
        rays.rays,
        rays.samples,
        density,
        colour,
        STEP,
        targets.rgba,
        targets.depth,
        weight,
        targets.background,
        CONFIG.huber,
        CONFIG.mask_weight,
        CONFIG.depth_weight,
        gradient,
        loss,
        items=32 * rays.count,
    )
    return float(loss), gradient


def rays_of(kernels: Kernels, rays: Bundle, density: torch.Tensor, stop: float = 0.0) -> torch.Tensor:
    """Run `composite_rays`: (count, 5) premultiplied colour, opacity and distance."""
    rgba = torch.full((rays.count, 4), float("nan"), device=kernels.device)
    distance = torch.full((rays.count,), float("nan"), device=kernels.device)
    _, colour = rays.inputs()
    kernels.launch(
        "composite_rays",
        rays.rays,
        rays.samples,
        density,
        colour,
        STEP,
        stop,
        rgba,
        distance,
        items=32 * rays.count,
    )
    return torch.cat([rgba, distance[:, None]], dim=-1)


def twin_rays(rays: Bundle) -> torch.Tensor:
    seen = rays.seen(rays.raw)
    return torch.cat([seen.colour, seen.opacity[:, None], seen.distance[:, None]], dim=-1).float()


def twin_loss(rays: Bundle, targets: RayTargets, raw: torch.Tensor) -> torch.Tensor:
    rgba, depth, background = targets.rgba.double(), targets.depth.double(), targets.background.double()
    return ray_loss(rays.seen(raw), RayTargets(rgba, depth, targets.mouth, background), CONFIG)


@pytest.fixture
def kernels(device: torch.device) -> Kernels:
    return Kernels(device, CONSTANTS)


# Exactly 32 steps, fewer, several times as many, and none.
STEPS = [0, 1, 31, 32, 33, 64, 70, 100, 0, 5, 17, 2] * 4


@pytest.mark.parametrize("max_samples", [1, 24, 1000])
def test_composited_rays_are_those_of_the_torch_reference(kernels: Kernels, max_samples: int) -> None:
    rays = bundle(kernels, STEPS, max_samples)
    torch.testing.assert_close(rays_of(kernels, rays, rays.inputs()[0]), twin_rays(rays), **VALUE)


@pytest.mark.parametrize("stop", [0.3, 1e-3])
def test_a_ray_may_end_at_low_transmittance(kernels: Kernels, stop: float) -> None:
    rays = bundle(kernels, STEPS, 1000)
    density = rays.inputs()[0]
    ended, whole = rays_of(kernels, rays, density, stop), rays_of(kernels, rays, density)
    missing = whole - ended
    assert (missing >= -1e-6).all()
    assert missing.max() < stop, "colours, opacity and metres here are below one"


@pytest.mark.parametrize("max_samples", [5, 24, 1000])
def test_loss_and_gradients_are_those_of_the_torch_reference(kernels: Kernels, max_samples: int) -> None:
    rays = bundle(kernels, STEPS, max_samples)
    targets = targets_of(rays.count, kernels.device)
    loss, gradient = loss_of(kernels, rays, targets, rays.inputs()[0])
    raw = rays.raw.clone().requires_grad_()
    expected = twin_loss(rays, targets, raw)
    expected.backward()
    assert raw.grad is not None
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    wanted = (raw.grad * LOSS_SCALE).float()
    torch.testing.assert_close(gradient[: rays.used], wanted[: rays.used], **GRADIENT)
    assert (gradient[: rays.used].abs() > 1e-3).any(dim=0).all(), "gradients are not all zero"
    assert (gradient[rays.dropped] == 0).all()
    assert gradient[rays.used :].isnan().all(), "nothing is written to unused slots"
    assert (rays.raw[rays.slot, 0] > MAX_LOG_DENSITY).any(), "some densities are clamped"
    assert (gradient[rays.slot, 0][rays.raw[rays.slot, 0] > MAX_LOG_DENSITY] == 0).all()


def test_gradients_are_those_of_finite_differences(kernels: Kernels) -> None:
    rays = bundle(kernels, STEPS[:12], 24)
    targets = targets_of(rays.count, kernels.device)
    _, gradient = loss_of(kernels, rays, targets, rays.inputs()[0])
    small = 1e-5
    for i in torch.randperm(len(rays.slot))[:24].tolist():
        for channel in range(4):
            change = torch.zeros_like(rays.raw)
            change[rays.slot[i], channel] = small
            ahead, back = (twin_loss(rays, targets, rays.raw + sign * change) for sign in (1, -1))
            slope = float(ahead - back) / (2 * small) * LOSS_SCALE
            assert float(gradient[rays.slot[i], channel]) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_occluded_samples_have_no_gradient(kernels: Kernels) -> None:
    """Adam would scale rounding noise up to full steps."""
    rays = bundle(kernels, [100], 1000)
    rays.raw[:, 0] = MAX_LOG_DENSITY - 0.01
    _, gradient = loss_of(kernels, rays, targets_of(1, kernels.device), rays.inputs()[0])
    assert (gradient[rays.slot[8:]].abs() < 1e-25).all()
    assert (gradient[rays.slot[0], 1:].abs() > 1e-3).all()


@pytest.mark.parametrize("steps", [[], [0, 0, 0]])
def test_rays_without_samples_are_empty(kernels: Kernels, steps: list[int]) -> None:
    rays = bundle(kernels, [*steps, 0], 24)
    assert (rays_of(kernels, rays, rays.inputs()[0]) == 0).all()
    targets = targets_of(rays.count, kernels.device)
    loss, gradient = loss_of(kernels, rays, targets, rays.inputs()[0])
    assert loss == pytest.approx(float(twin_loss(rays, targets, rays.raw)), rel=1e-5)
    assert gradient.isnan().all()


def test_a_nan_sample_affects_only_its_ray_and_the_loss(kernels: Kernels) -> None:
    rays = bundle(kernels, STEPS, 24)
    targets = targets_of(rays.count, kernels.device)
    density = rays.inputs()[0]
    whole, (_, gradient) = rays_of(kernels, rays, density), loss_of(kernels, rays, targets, density)
    broken = int(rays.ray[len(rays.ray) // 2])
    density[rays.slot[len(rays.ray) // 2]] = float("nan")
    seen, (loss, spoilt) = rays_of(kernels, rays, density), loss_of(kernels, rays, targets, density)
    others = torch.arange(rays.count, device=kernels.device) != broken
    assert torch.equal(seen[others], whole[others])
    assert not seen[broken].isfinite().any()
    assert not torch.tensor(loss).isfinite()
    slots = rays.slot[rays.ray != broken]
    assert torch.equal(spoilt[slots], gradient[slots])


@pytest.mark.parametrize("max_samples", [5, 1000])
def test_visible_cells_are_those_of_the_torch_reference(
    kernels: Kernels, device: torch.device, max_samples: int
) -> None:
    rays = bundle(kernels, STEPS, max_samples)
    density, colour = rays.inputs()
    occupancy = AvatarModel(open_head(), neutral_shape(open_head()), SMALL, device).occupancy
    occupancy.visibility.zero_()
    lit = torch.zeros_like(occupancy.visibility)
    space = occupancy_struct(kernels, occupancy, occupancy.state() | {"visibility": lit})
    items = 32 * rays.count
    kernels.launch("mark_visible_cells", rays.rays, rays.samples, density, colour, STEP, space, items=items)
    passed = rays.seen(rays.raw).optical_depth
    occupancy.mark_visible(rays.position[rays.slot], passed)
    assert torch.equal(lit, occupancy.visibility)
    assert 0 < int(lit.sum()) < len(lit)
    assert (torch.exp(-passed) < IN_SIGHT).any(), "some samples are occluded"

"""Compositing: closed forms, a loop, finite differences."""

from __future__ import annotations

import math

import torch

from insta_runtime.render.compositing import composite


def packed(seed: int, counts: list[int]) -> tuple[torch.Tensor, ...]:
    """Density, colour, distance, ray of rays with so many samples each, float64."""
    generator = torch.Generator().manual_seed(seed)
    ray = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    density = 200.0 * torch.rand(len(ray), generator=generator, dtype=torch.float64)
    colour = torch.rand((len(ray), 3), generator=generator, dtype=torch.float64)
    distance = torch.cat([0.5 + 0.01 * torch.arange(count) for count in counts]).double()
    return density, colour, distance, ray


def test_transmittance_of_a_homogeneous_medium_is_exponential() -> None:
    n, sigma, step = 400, 25.0, 0.0005
    distance = step * (torch.arange(n, dtype=torch.float64) + 0.5)
    density, colour = torch.full((n,), sigma).double(), torch.tensor([0.2, 0.5, 1.0]).double().expand(n, 3)
    seen = composite(density, colour, distance, torch.zeros(n, dtype=torch.int64), 1, step)
    length = n * step
    opacity = 1.0 - math.exp(-sigma * length)
    torch.testing.assert_close(seen.opacity, torch.tensor([opacity]).double())
    torch.testing.assert_close(seen.colour, opacity * colour[:1])
    # The integral of sigma t exp(-sigma t) from 0 to the end.
    expected = 1.0 / sigma - math.exp(-sigma * length) * (length + 1.0 / sigma)
    torch.testing.assert_close(seen.distance, torch.tensor([expected]).double(), rtol=1e-4, atol=0)


def test_packed_rays_agree_with_a_loop() -> None:
    counts = [3, 0, 7, 1, 0, 0, 12, 2]
    density, colour, distance, ray = packed(0, counts)
    seen = composite(density, colour, distance, ray, len(counts), 0.01)
    for r in range(len(counts)):
        optical_depth, opacity, depth, rgb = 1.0, 0.0, 0.0, torch.zeros(3).double()
        for i in (ray == r).nonzero()[:, 0].tolist():
            weight = optical_depth * (1.0 - math.exp(-float(density[i]) * 0.01))
            optical_depth *= math.exp(-float(density[i]) * 0.01)
            opacity, depth, rgb = opacity + weight, depth + weight * float(distance[i]), rgb + weight * colour[i]
        torch.testing.assert_close(seen.colour[r], rgb)
        torch.testing.assert_close(seen.opacity[r], torch.tensor(opacity).double())
        torch.testing.assert_close(seen.distance[r], torch.tensor(depth).double())


def test_opaque_samples_hide_those_behind() -> None:
    density, colour = torch.tensor([0.0, 1e6, 1e6]), torch.eye(3)
    seen = composite(density, colour, torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.int64), 1, 0.004)
    torch.testing.assert_close(seen.colour, torch.tensor([[0.0, 1.0, 0.0]]))
    torch.testing.assert_close(seen.distance, torch.tensor([0.2]))


def test_rays_without_samples_are_empty() -> None:
    none = torch.zeros(0)
    seen = composite(none, torch.zeros((0, 3)), none, none.long(), 3, 0.01)
    assert seen.colour.shape == (3, 3)
    assert not seen.colour.any()
    assert not seen.opacity.any()
    assert not seen.distance.any()


def test_a_long_batch_stays_exact_in_float32() -> None:
    """Running sums are separate for each ray: the last of many rays is as exact as the first."""
    density, colour, distance, ray = packed(1, [20])
    many = 5000
    rays = torch.arange(many).repeat_interleave(20)
    seen = composite(
        density.float().repeat(many), colour.float().repeat(many, 1), distance.float().repeat(many), rays, many, 0.01
    )
    truth = composite(density, colour, distance, ray, 1, 0.01)
    torch.testing.assert_close(seen.colour[-1].double(), truth.colour[0], atol=2e-6, rtol=0)
    assert torch.equal(seen.colour[0], seen.colour[-1])


def test_gradients_agree_with_finite_differences() -> None:
    density, colour, distance, ray = packed(2, [3, 0, 4, 1])
    density.requires_grad_()
    colour.requires_grad_()

    def seen(sigma: torch.Tensor, rgb: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = composite(sigma, rgb, distance, ray, 4, 0.01)
        return out.colour, out.opacity, out.distance

    assert torch.autograd.gradcheck(seen, (density, colour))

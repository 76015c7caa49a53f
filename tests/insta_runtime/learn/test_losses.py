"""Losses of a batch of rays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from insta_runtime.config import LearnConfig
from insta_runtime.learn.losses import RayTargets, huber, ray_loss
from insta_runtime.render.compositing import Composite

CONFIG = LearnConfig(huber=0.1, mask_weight=0.2, depth_weight=0.5, mouth_weight=4.0)


def truth(rays: int = 4) -> tuple[Composite, RayTargets]:
    """Opaque grey rays with a depth prior, seen as they are."""
    colour, one, distance = torch.full((rays, 3), 0.5), torch.ones(rays), torch.full((rays,), 0.6)
    rgba = torch.cat([colour, one[:, None]], dim=-1)
    mouth = torch.zeros(rays, dtype=torch.bool)
    return Composite(colour, one, distance, torch.zeros(0)), RayTargets(rgba, distance, mouth, torch.rand((rays, 3)))


def test_huber_is_quadratic_then_linear() -> None:
    error = torch.tensor([0.0, 0.05, -0.05, 0.1, 0.3, -1.0])
    torch.testing.assert_close(huber(error, 0.1), torch.tensor([0.0, 0.0125, 0.0125, 0.05, 0.25, 0.95]))
    around = torch.tensor([0.1 - 1e-6, 0.1 + 1e-6], requires_grad=True)
    huber(around, 0.1).sum().backward()
    torch.testing.assert_close(around.grad, torch.ones(2))


def test_the_loss_of_the_truth_is_zero() -> None:
    assert float(ray_loss(*truth(), CONFIG)) == 0.0


def test_the_loss_of_an_empty_ray_over_background_is_zero() -> None:
    rays = 3
    seen = Composite(torch.zeros((rays, 3)), torch.zeros(rays), torch.zeros(rays), torch.zeros(0))
    mouth = torch.zeros(rays, dtype=torch.bool)
    targets = RayTargets(torch.zeros((rays, 4)), torch.zeros(rays), mouth, torch.rand((rays, 3)))
    assert float(ray_loss(seen, targets, CONFIG)) == 0.0


def test_colour_is_compared_over_the_background() -> None:
    seen, targets = truth(1)
    off = replace(seen, colour=seen.colour + 0.3)
    assert float(ray_loss(off, targets, CONFIG)) == pytest.approx(0.25)
    # Half opaque before a background of the colour of the skin: only opacity is wrong.
    half = replace(seen, colour=0.5 * seen.colour, opacity=torch.tensor([0.5]))
    alike = replace(targets, background=torch.full((1, 3), 0.5))
    assert float(ray_loss(half, alike, CONFIG)) == pytest.approx(0.2 * 0.25)


def test_mouth_pixels_have_a_larger_weight() -> None:
    seen, targets = truth(1)
    off = replace(seen, colour=seen.colour + 0.3)
    assert float(ray_loss(off, replace(targets, mouth=torch.tensor([True])), CONFIG)) == pytest.approx(4 * 0.25)


def test_the_depth_loss_acts_beyond_its_slack_and_only_where_there_is_a_prior() -> None:
    seen, targets = truth(1)
    assert float(ray_loss(replace(seen, distance=seen.distance + CONFIG.depth_slack - 1e-4), targets, CONFIG)) == 0.0
    off = replace(seen, distance=seen.distance - CONFIG.depth_slack - 0.02)
    assert float(ray_loss(off, targets, CONFIG)) == pytest.approx(0.5 * 0.02, rel=1e-4)
    assert float(ray_loss(off, replace(targets, depth=torch.zeros(1)), CONFIG)) == 0.0

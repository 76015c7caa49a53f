"""Inverse warp of points and directions by kernels, against `PosedHead.inverse_warp` on the true nearest triangle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from insta_runtime.config import ConditioningConfig, WarpConfig
from insta_runtime.warp.nearest import nearest_brute_force
from insta_runtime.warp.warp import MOTION, PARTS, code_fade
from tests.support.posed_person import DEFAULT, Posed, band_points, model_of, random_state, run

DISPLACED = 2e-5  # metres, for 95 % of the points; the finest cells of the field are 1 mm
TURNED = 1e-4  # of a unit vector
EDGES = 0.97  # share of points that must agree; the others belong to another triangle or lie on a sharp edge


def carry(posed: Posed, frame: int, points: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    position, turned = torch.full_like(points, torch.nan), torch.full_like(points, torch.nan)
    masks, heads = torch.full_like(points[:, :2].contiguous(), torch.nan), posed.heads
    arguments = (heads.head, heads.poses, frame, points.contiguous(), directions, len(points), position, turned, masks)
    heads.kernels.launch("inverse_warp_points", *arguments, items=len(points))
    return position, turned, masks


HOLDING = replace(DEFAULT, warp=WarpConfig(loosens=0.0))


@pytest.mark.parametrize("seed", [21, 22])
def test_points_are_warped_with_the_true_nearest_triangle(device: torch.device, seed: int) -> None:
    model = model_of(device, HOLDING)
    posed = run(model, [random_state(model.head, seed)])
    points = band_points(posed, 0, 700)
    directions = torch.nn.functional.normalize(torch.randn_like(points), dim=-1)
    position, turned, masks = carry(posed, 0, points, directions)

    twin, warp = posed.twins()[0], model.warp
    truth = nearest_brute_force(points, twin.vertices, model.rig.faces)
    corner, b = model.rig.faces[truth.triangle], truth.barycentrics[:, :, None]
    linear = (twin.vertex_maps[corner] * b[..., None]).sum(dim=1)
    offset = points - (twin.vertices[corner] * b).sum(dim=1)
    expected = (warp.canonical.vertices[corner] * b).sum(dim=1) + torch.einsum("nij,nj->ni", linear, offset)
    direction = torch.nn.functional.normalize(torch.einsum("nij,nj->ni", linear, directions), dim=-1)
    faded = (warp.masks[corner] * b).sum(dim=1) * code_fade(truth.distance)[:, None]

    assert float(((position - expected).norm(dim=-1) < DISPLACED).float().mean()) > EDGES
    assert float(((turned - direction).norm(dim=-1) < TURNED).float().mean()) > EDGES
    assert float(((masks - faded).abs().amax(dim=-1) < TURNED).float().mean()) > EDGES
    torch.testing.assert_close(turned.norm(dim=-1), torch.ones_like(turned[:, 0]))


PAPER = replace(
    DEFAULT, warp=WarpConfig(blend="neighbours", scale="area"), conditioning=ConditioningConfig(code="lips")
)
SWITCHES = {
    "paper": PAPER,
    "triangle": replace(DEFAULT, warp=WarpConfig(blend="triangle", scale="length")),
    "neighbours": replace(DEFAULT, warp=WarpConfig(blend="neighbours", scale="none")),
    "holding": HOLDING,
    "loose": replace(DEFAULT, warp=WarpConfig(loosens=0.03)),
    "area": replace(DEFAULT, warp=WarpConfig(scale="area")),
    "lips": replace(DEFAULT, conditioning=ConditioningConfig(code="lips")),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_blend_and_scale_is_that_of_the_torch_reference(device: torch.device, switch: str) -> None:
    model = model_of(device, SWITCHES[switch])
    posed = run(model, [random_state(model.head, 24)])
    points = band_points(posed, 0, 3000)
    directions = torch.nn.functional.normalize(torch.randn_like(points), dim=-1)
    position, turned, masks = carry(posed, 0, points, directions)
    twin = posed.twins()[0]
    truth = nearest_brute_force(points, twin.vertices, model.rig.faces)
    expected = twin.inverse_warp(points, directions, truth)
    # Above an edge or corner several triangles are equally near, and their maps differ.
    inside = truth.barycentrics.amin(dim=-1) > 1e-3
    assert inside.sum() > 500
    assert float(((position - expected.position).norm(dim=-1) < DISPLACED)[inside].float().mean()) > EDGES
    assert float(((turned - expected.direction).norm(dim=-1) < TURNED)[inside].float().mean()) > EDGES
    assert float(((masks - expected.masks).abs().amax(dim=-1) < TURNED)[inside].float().mean()) > EDGES
    if switch in ("paper", "lips"):
        assert set(masks.unique().tolist()) == {0.0, 1.0}
        assert not masks[:, 1].any()


def test_motions_of_mouth_and_eyes_are_those_of_the_torch_reference(device: torch.device) -> None:
    model = model_of(device, DEFAULT)
    posed = run(model, [random_state(model.head, 25)])
    points = band_points(posed, 0, 3000)
    directions = torch.nn.functional.normalize(torch.randn_like(points), dim=-1)
    before, _, masks = carry(posed, 0, points, directions)
    motions = 3e-3 * torch.randn((PARTS, MOTION), device=device)
    first = len(model.head.expression_names) + 30
    posed.heads.states[0, first : first + PARTS * MOTION] = motions.flatten()
    after, _, unchanged = carry(posed, 0, points, directions)
    twin = posed.twins()[0]
    truth = nearest_brute_force(points, twin.vertices, model.rig.faces)
    still = twin.inverse_warp(points, directions, truth).position
    twin.part_motions = motions
    moved = twin.inverse_warp(points, directions, truth).position
    agree = (before - still).norm(dim=-1) < DISPLACED
    assert float(agree.float().mean()) > 0.8
    off = ((after - before) - (moved - still))[agree].norm(dim=-1)
    assert float((off < 5e-6).float().mean()) > 0.999  # of two equally near triangles either may be chosen
    assert torch.equal(masks, unchanged)
    for part in range(PARTS):
        assert float((after - before)[masks[:, part] > 0.5].norm(dim=-1).amax()) > 1e-3
    alone = masks.amax(dim=-1) == 0.0
    assert alone.any()
    assert torch.equal(after[alone], before[alone])


def test_points_outside_the_band_are_not_warped(device: torch.device) -> None:
    model = model_of(device, DEFAULT)
    posed = run(model, [random_state(model.head, 23)])
    points = model.warp.box.origin - torch.rand((5, 3), device=device)
    directions = torch.nn.functional.normalize(torch.randn_like(points), dim=-1)
    position, turned, masks = carry(posed, 0, points, directions)
    assert torch.equal(position, points)
    assert torch.equal(turned, directions)
    assert not masks.any()

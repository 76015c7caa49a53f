"""Switches of learning that ablations turn: binary mattes, regions, silhouettes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from insta_runtime.config import AvatarConfig
from insta_runtime.learn.torch_replay import ray_regions
from insta_runtime.render.model import AvatarModel
from insta_runtime.render.occupancy import HULL_VOTES
from insta_runtime.types import Observation
from tests.support.small_person import CPU, SMALL, camera, neutral_shape, open_head, pose, small_model

STATE = pose(open_head())


def model_with(**changes: AvatarConfig) -> AvatarModel:
    return AvatarModel(open_head(), neutral_shape(open_head()), replace(SMALL, **changes), CPU)


def test_a_binary_matte_is_opaque_or_transparent() -> None:
    alpha = np.array([[0, 100], [128, 255]], np.uint8)
    observation = Observation(0, np.full((2, 2, 3), 200, np.uint8), alpha, camera(2), STATE)
    soft, _ = observation.premultiplied(2)
    hard, _ = observation.premultiplied(2, binary=True)
    assert hard[..., 3].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    torch.testing.assert_close(hard[..., 0], hard[..., 3] * 200 / 255)
    torch.testing.assert_close(soft[..., 3], torch.from_numpy(alpha) / 255.0)


@pytest.mark.parametrize(("depth_on", "mouth_on"), [("face", "mouth"), ("skin", "lips")])
def test_regions_of_rays_are_those_of_the_head(depth_on: str, mouth_on: str) -> None:
    model = model_with(learn=replace(SMALL.learn, depth_on=depth_on, mouth_on=mouth_on))
    prior, mouth = ray_regions(model).unbind(-1)
    masks = {name: torch.from_numpy(mask) for name, mask in open_head().masks.items()}
    assert torch.equal(mouth, masks[mouth_on])
    if depth_on == "skin":
        assert (prior[masks["ears"] > 0.9] > 0.5).all()
        assert (prior[masks["scalp"] > 0.9] < 0.5).all()
    else:
        assert torch.equal(prior, masks["face"])


@pytest.mark.parametrize("silhouettes", [True, False])
def test_silhouettes_empty_cells_only_if_configured(silhouettes: bool) -> None:
    model = model_with(occupancy=replace(SMALL.occupancy, silhouettes=silhouettes))
    before = model.occupancy.occupied.sum()
    nothing, nowhere = torch.zeros((48, 48)), torch.full((48, 48), torch.inf)
    for _ in range(HULL_VOTES):
        model.occupancy.carve(small_model().pose(STATE), STATE, camera(48), nothing, nowhere, 0.0)
    assert (model.occupancy.occupied.sum() < before) == silhouettes

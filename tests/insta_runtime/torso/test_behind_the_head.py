"""Rendering over a background that is rendered for each frame, with every renderer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from insta_runtime.backends import choose_backend, make_renderer
from insta_runtime.render.model import AvatarModel
from insta_runtime.types import RenderedFrame
from tests.support.small_person import SMALL, camera, neutral_shape, open_head, pose


@pytest.mark.parametrize(
    ("backend", "device"),
    [("torch", "cpu"), ("host", "cpu"), pytest.param("cuda", "cuda", marks=pytest.mark.gpu)],
)
def test_a_rendered_background_is_behind_the_head_in_each_frame(backend: str, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    head = open_head()
    model = AvatarModel(head, neutral_shape(head), SMALL, torch.device(device))
    renderer = make_renderer(model, choose_backend(backend, model))
    state, view = pose(head, jaw=0.3), camera(32)
    paintings = [torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    still = np.full((32, 32, 3), 0.25, np.float32)
    alone: RenderedFrame = renderer.render(state, view)
    for painting in paintings:
        shown = renderer.picture(state, view, lambda painting=painting: painting.to(device))
        assert np.abs(shown.astype(int) - alone.over(painting.numpy())).max() <= 2
        assert np.abs(renderer.picture(state, view, still).astype(int) - alone.over(still)).max() <= 2

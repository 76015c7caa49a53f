"""The evaluation protocol."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_person import camera, open_head, paint, performance, photograph

from insta_runtime.learn.evaluation import score, split
from insta_runtime.types import Camera, HeadState, Observation, RenderedFrame


@pytest.mark.parametrize(
    ("count", "holdout", "train", "held"),
    [(100, 0.125, 88, 12), (8, 0.125, 7, 1), (8, 0.0, 8, 0), (3, 1.0, 1, 2), (1, 0.5, 1, 0), (0, 0.5, 0, 0)],
)
def test_the_last_part_is_held_back_and_something_is_left_to_learn_from(
    count: int, holdout: float, train: int, held: int
) -> None:
    first, last = split(count, holdout)
    assert (len(first), len(last)) == (train, held)
    assert [*first, *last] == list(range(count))


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), 3), 48, paint(open_head()))


def test_the_truth_scores_best_and_is_asked_for_at_the_given_size(observations: list[Observation]) -> None:
    cameras = []

    def perfect(state: HeadState, view: Camera) -> RenderedFrame:
        cameras.append(view)
        shown = next(o for o in observations if o.state is state)
        alpha = shown.alpha[..., None].astype(np.float32) / 255
        rgba = np.concatenate([shown.rgb.astype(np.float32) / 255 * alpha, alpha], axis=-1)
        step = 48 // view.width
        return RenderedFrame(0, 0, rgba.reshape(view.height, step, view.width, step, 4).mean(axis=(1, 3)))

    for size in (48, 24):
        scores = score(perfect, observations, size)
        assert scores.psnr_db > 90
        assert scores.head_psnr_db > 90
        assert scores.ssim == pytest.approx(1.0, abs=1e-4)
        assert scores.pictures == 3
    assert cameras == [camera(48)] * 3 + [camera(24)] * 3


def test_an_empty_rendering_is_worse_in_the_head_than_in_the_whole(observations: list[Observation]) -> None:
    def nothing(state: HeadState, view: Camera) -> RenderedFrame:
        return RenderedFrame(0, 0, np.zeros((view.height, view.width, 4), np.float32))

    scores = score(nothing, observations, 48)
    assert scores.head_psnr_db < scores.psnr_db - 3.0
    assert math.isnan(score(nothing, [], 48).psnr_db)


def test_pictures_without_a_head_count_in_the_whole_alone(observations: list[Observation]) -> None:
    first = observations[0]
    blank = Observation(9, first.rgb, np.zeros_like(first.alpha), first.camera, first.state)

    def nothing(state: HeadState, view: Camera) -> RenderedFrame:
        return RenderedFrame(0, 0, np.zeros((view.height, view.width, 4), np.float32))

    scores = score(nothing, [blank], 48)
    assert scores.psnr_db == 100.0
    assert math.isnan(scores.head_psnr_db)

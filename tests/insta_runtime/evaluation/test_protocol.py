"""Evaluation protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from insta_runtime.evaluation.metrics import psnr, ssim_map
from insta_runtime.evaluation.protocol import METRICS, REGIONS, compare, score, score_psnr, split
from insta_runtime.evaluation.regions import FaceRegions
from insta_runtime.head import HeadRig
from insta_runtime.types import Camera, HeadState, Observation, RenderedFrame
from tests.support.small_person import camera, neutral_shape, open_head, paint, performance, photograph, pose


@pytest.mark.parametrize(
    ("count", "holdout", "train", "held"),
    [(100, 0.125, 88, 12), (8, 0.125, 7, 1), (8, 0.0, 8, 0), (3, 1.0, 1, 2), (1, 0.5, 1, 0), (0, 0.5, 0, 0)],
)
def test_the_last_part_is_held_out_and_some_frames_are_left_for_training(
    count: int, holdout: float, train: int, held: int
) -> None:
    first, last = split(count, holdout)
    assert (len(first), len(last)) == (train, held)
    assert [*first, *last] == list(range(count))


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    return photograph(open_head(), performance(open_head(), 3), 48, paint(open_head()))


def test_the_truth_scores_best_and_is_rendered_at_the_given_size(observations: list[Observation]) -> None:
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


def nothing(state: HeadState, view: Camera) -> RenderedFrame:
    return RenderedFrame(0, 0, np.zeros((view.height, view.width, 4), np.float32))


def perfect_for(observations: list[Observation], noise: float = 0.0) -> Callable[[HeadState, Camera], RenderedFrame]:
    """Renders the truth with new noise in every frame."""
    random = np.random.default_rng(0)

    def render(state: HeadState, view: Camera) -> RenderedFrame:
        shown = next(o for o in observations if o.state is state)
        alpha = shown.alpha[..., None].astype(np.float32) / 255
        rgb = shown.rgb.astype(np.float32) / 255 + noise * random.standard_normal(shown.rgb.shape).astype(np.float32)
        return RenderedFrame(0, 0, np.concatenate([rgb * alpha, alpha], axis=-1))

    return render


def face() -> FaceRegions:
    return FaceRegions(HeadRig(open_head()), neutral_shape(open_head()))


def test_metrics_are_computed_for_each_region(observations: list[Observation]) -> None:
    def one_eyed(state: HeadState, view: Camera) -> RenderedFrame:
        frame = perfect_for(observations)(state, view)
        left, top, right, bottom = (round(edge) for edge in face().boxes(state, view)["eyes"][0])
        frame.rgba[top:bottom, left:right, :3] *= 0.5
        return frame

    scores = score(one_eyed, observations, 48, face())
    assert set(scores.means) == set(REGIONS)
    assert set(scores.means["eyes"]) == set(METRICS)
    by_region = [scores.means[region]["psnr_db"] for region in ("mouth", "whole", "head", "eyes")]
    assert by_region == sorted(by_region, reverse=True)
    assert by_region[0] > 90
    assert scores.means["eyes"]["flip"] > scores.means["head"]["flip"] > scores.means["mouth"]["flip"] < 0.05
    assert scores.means["eyes"]["ssim"] < scores.means["head"]["ssim"] < scores.means["mouth"]["ssim"]
    assert [each["eyes"]["psnr_db"] for each in scores.each] == pytest.approx(
        [scores.means["eyes"]["psnr_db"]] * 3, abs=6
    )
    assert scores.frame_ids == [0, 1, 2]


def test_metrics_of_the_whole_frame_are_means_of_the_maps(observations: list[Observation]) -> None:
    seen = perfect_for(observations, noise=0.1)
    scores = score(seen, observations[:1], 48)
    (compared,) = compare(perfect_for(observations, noise=0.1), observations[:1], 48)
    assert scores.psnr_db == pytest.approx(psnr(compared.picture, compared.truth), abs=1e-3)
    assert scores.ssim == pytest.approx(float(ssim_map(compared.picture, compared.truth).mean()), abs=1e-5)
    assert scores.head_psnr_db == pytest.approx(
        psnr(compared.picture, compared.truth, compared.regions["head"]), abs=1e-3
    )
    assert math.isnan(scores.means["eyes"]["psnr_db"]), "no face regions were given"


def test_score_psnr_agrees_with_score(observations: list[Observation]) -> None:
    scores = score(perfect_for(observations, noise=0.1), observations, 48)
    whole, head = score_psnr(perfect_for(observations, noise=0.1), observations, 48)
    assert (whole, head) == pytest.approx((scores.psnr_db, scores.head_psnr_db), abs=1e-4)
    assert all(math.isnan(value) for value in score_psnr(nothing, [], 48))


def film(states: list[HeadState], noise: float) -> list[Observation]:
    """Pictures of the states, grainy by ``noise``, in parts of white."""
    random = np.random.default_rng(1)
    return [
        replace(o, rgb=np.clip(o.rgb + 255 * noise * random.standard_normal(o.rgb.shape), 0, 255).astype(np.uint8))
        for o in photograph(open_head(), states, 48, paint(open_head()))
    ]


def test_steadiness_measures_changes_of_a_still_head() -> None:
    still = film([pose(open_head()) for _ in range(4)], noise=0.04)
    frozen = perfect_for([replace(o, rgb=still[0].rgb) for o in still])
    assert score(frozen, still, 48, face()).steadiness.ratio == 0.0
    assert score(perfect_for(still), still, 48, face()).steadiness.ratio == pytest.approx(1.0, abs=1e-3)
    restless = score(perfect_for(still, noise=0.08), still, 48, face()).steadiness
    assert restless.pairs == 3
    assert restless.ratio > 1.5
    assert restless.footage == pytest.approx(0.04 * 2 / math.sqrt(math.pi), rel=0.3)


def test_only_successive_frames_of_a_still_head_count() -> None:
    head = open_head()
    states = [pose(head), pose(head), pose(head, jaw=0.5), pose(head, jaw=0.5), pose(head, jaw=0.5)]
    moving = film(states, noise=0.04)
    render = perfect_for(moving)
    assert score(render, moving, 48, face()).steadiness.pairs == 3
    assert score(render, [moving[0], moving[1], moving[4]], 48, face()).steadiness.pairs == 1
    assert score(render, moving, 48).steadiness.pairs == 0, "without face regions there are no static segments"
    every_other = score(render, moving[::2], 48, face()).steadiness
    assert every_other.pairs == 0
    assert math.isnan(every_other.ratio)


def test_lpips_is_computed_if_available(observations: list[Observation]) -> None:
    def distance(picture: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (picture - truth).abs().max()

    scores = score(nothing, observations, 48, perceptual=distance)
    assert 0.3 < scores.means["whole"]["lpips"] <= 1.0


def test_an_empty_rendering_is_worse_in_the_head_region_than_in_the_whole_frame(
    observations: list[Observation],
) -> None:
    scores = score(nothing, observations, 48)
    assert scores.head_psnr_db < scores.psnr_db - 3.0
    assert math.isnan(score(nothing, [], 48).psnr_db)


def test_frames_without_a_head_count_only_for_the_whole_frame(observations: list[Observation]) -> None:
    first = observations[0]
    blank = Observation(9, first.rgb, np.zeros_like(first.alpha), first.camera, first.state)

    scores = score(nothing, [blank], 48)
    assert scores.psnr_db == 100.0
    assert math.isnan(scores.head_psnr_db)

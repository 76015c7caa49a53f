"""The evaluation protocol: held-out pictures against renderings, whole frame and head, over white."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from insta_runtime.learn.metrics import head_mask, over_white, psnr, ssim
from insta_runtime.learn.replay import premultiplied
from insta_runtime.types import Camera, HeadState, Observation, RenderedFrame

Render = Callable[[HeadState, Camera], RenderedFrame]


@dataclass(frozen=True)
class Scores:
    """Means over pictures: ``psnr_db`` and ``ssim`` of the whole frame, ``head_psnr_db`` of the head region."""

    psnr_db: float
    ssim: float
    head_psnr_db: float
    pictures: int


def split(count: int, holdout: float) -> tuple[range, range]:
    """Training and held-out positions of ``count`` pictures in time: the last ``holdout`` part is kept back."""
    held = min(count - 1, round(count * holdout)) if count else 0
    return range(count - held), range(count - held, count)


def score(render: Render, observations: Sequence[Observation], size: int) -> Scores:
    """Score ``render`` on ``observations`` at a longest side of ``size`` pixels.

    Truth is stored picture x stored matte over white, scaled by area averaging; PSNR is taken per picture, then
    averaged.  The head region is alpha > 0.5, dilated by 1 % of the side.
    """
    whole, similar, head = [], [], []
    for observation in observations:
        rgba, camera = premultiplied(observation, size)
        truth = over_white(rgba)
        picture = over_white(render(observation.state, camera).rgba)
        whole.append(psnr(picture, truth))
        similar.append(ssim(picture, truth))
        region = psnr(picture, truth, head_mask((rgba[..., 3] * 255.0).to(torch.uint8).numpy()))
        if math.isfinite(region):
            head.append(region)
    if not whole:
        return Scores(math.nan, math.nan, math.nan, 0)
    return Scores(fmean(whole), fmean(similar), fmean(head) if head else math.nan, len(whole))

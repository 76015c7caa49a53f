"""Evaluation protocol: metrics of rendered frames against held-out frames over white, by region, and steadiness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from insta_runtime.evaluation.flip import PIXELS_PER_DEGREE, flip_map
from insta_runtime.evaluation.metrics import EQUAL, SSIM_MARGIN, head_mask, over_white, squared_error, ssim_map
from insta_runtime.evaluation.regions import DEFINITION, Box, FaceRegions, masks
from insta_runtime.types import Camera, HeadState, Observation, RenderedFrame

Render = Callable[[HeadState, Camera], RenderedFrame]
"""Function that renders the avatar in a head state with a camera: premultiplied RGBA of the camera's size."""
Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Perceptual distance (such as LPIPS) of two images (H, W, 3) in [0, 1]: a scalar tensor."""

REGIONS: Final = ("whole", "head", "mouth", "eyes")
"""Names of the image regions over which metrics are computed."""
METRICS: Final = ("psnr_db", "ssim", "flip")
"""Names of the metrics: PSNR in dB, SSIM and FLIP."""
STILL: Final = 0.001
"""Maximum mean motion of the face between two frames of a static segment, as a share of the image's longest side."""

PROTOCOL: Final = {
    "background": "white; truth is stored picture x stored matte",
    "scaling": "area averaging of the premultiplied picture; never enlarged",
    "head": "matte > 0.5, dilated by 1 % of the side",
    "regions": DEFINITION,
    "mean": "each figure is taken per picture, then averaged; a picture without a region does not count in it",
    "psnr": "of floats in [0, 1], mean squared error over pixels of the region and the three channels",
    "ssim": "Gaussian 11 x 11, sigma 1.5; whole windows; mean of the map over the region",
    "flip": f"LDR-FLIP (2020), {PIXELS_PER_DEGREE:g} pixels per degree; mean of the map over the region",
    "steadiness": (
        "static segments: pairs of successive pictures between which the tracked face moves by less than "
        f"{100 * STILL:g} % of the side (mean over vertices of the posed mesh); the rendered pictures' mean absolute "
        "change within the head region of both, divided by the footage's, summed over pairs; none without such pairs"
    ),
}
"""Definition of the evaluation in words; written into its results."""


@dataclass(frozen=True)
class FrameComparison:
    """One held-out frame and the rendered frame, both over white.

    Attributes:
        observation: the held-out frame, at its original size.
        camera: camera of the compared images, which may be smaller.
        truth: (H, W, 3) held-out image over white, in [0, 1].
        picture: (H, W, 3) rendered image over white, in [0, 1].
        regions: mask (H, W) bool of each of `REGIONS`, by name.
        boxes: bounding boxes of ``mouth`` and ``eyes`` in pixels, by region.
    """

    observation: Observation
    camera: Camera
    truth: torch.Tensor
    picture: torch.Tensor
    regions: dict[str, torch.Tensor]
    boxes: dict[str, list[Box]]


@dataclass(frozen=True)
class Steadiness:
    """Temporal steadiness: frame-to-frame change of rendered frames and of the footage while the face hardly moves.

    Attributes:
        rendered, footage: mean absolute change between successive frames of static segments, of the rendered and of the
            held-out frames; colours in [0, 1]; NaN if there are no static segments.
        pairs: number of pairs of successive frames in static segments.
    """

    rendered: float = math.nan
    footage: float = math.nan
    pairs: int = 0

    @property
    def ratio(self) -> float:
        """Change of rendered frames divided by that of the held-out frames; NaN without static segments.

        1 means that the rendered video is as steady as the recorded one; larger values mean flicker.
        """
        return self.rendered / self.footage if self.footage > 0.0 else math.nan


@dataclass(frozen=True)
class Scores:
    """Image metrics of a set of rendered frames against held-out frames.

    Attributes:
        means: mean over the frames of each of `METRICS`, as ``means[region][metric]`` for each of `REGIONS`; also
            ``lpips`` of ``whole`` if it was computed.
        each: the same metrics of each frame; NaN for a region that the frame does not show.
        frame_ids: frame ids, in the order of ``each``.
        steadiness: steadiness over all frames.
    """

    means: dict[str, dict[str, float]]
    each: list[dict[str, dict[str, float]]]
    frame_ids: list[int]
    steadiness: Steadiness = field(default_factory=Steadiness)

    @property
    def pictures(self) -> int:
        """Number of compared frames."""
        return len(self.each)

    @property
    def psnr_db(self) -> float:
        """Mean PSNR in dB of the whole image."""
        return self.means["whole"]["psnr_db"]

    @property
    def ssim(self) -> float:
        """Mean SSIM of the whole image."""
        return self.means["whole"]["ssim"]

    @property
    def head_psnr_db(self) -> float:
        """Mean PSNR in dB of the head region."""
        return self.means["head"]["psnr_db"]


def split(count: int, holdout: float) -> tuple[range, range]:
    """Split ``count`` frames in the order of time into training and held-out frames: the two ranges of their indices.

    The last share ``holdout`` in [0, 1] is held out, but at least one frame is used for training.
    """
    held = min(count - 1, round(count * holdout)) if count else 0
    return range(count - held), range(count - held, count)


def compare(
    render: Render,
    observations: Sequence[Observation],
    size: int,
    face: FaceRegions | None = None,
    device: torch.device | None = None,
) -> Iterator[FrameComparison]:
    """Render each observation's head state with its camera and yield the comparison with the observation.

    Args:
        render: renders the avatar.
        observations: held-out frames.
        size: longest side in pixels; larger images are reduced, none is enlarged.
        face: locates mouth and eyes; if None, these regions are empty.
        device: device of the compared images; the CPU by default.
    """
    for observation in observations:
        rgba, camera = observation.premultiplied(size, device)
        boxes = face.boxes(observation.state, camera) if face else {"mouth": [], "eyes": []}
        picture = torch.as_tensor(render(observation.state, camera).rgba).to(rgba.device)
        regions = {
            "whole": torch.ones_like(rgba[..., 0], dtype=torch.bool),
            "head": head_mask((rgba[..., 3] * 255.0).to(torch.uint8)),
            **masks(boxes, camera, rgba.device),
        }
        yield FrameComparison(observation, camera, over_white(rgba), over_white(picture), regions, boxes)


def score(
    render: Render,
    observations: Sequence[Observation],
    size: int,
    face: FaceRegions | None = None,
    device: torch.device | None = None,
    perceptual: Perceptual | None = None,
) -> Scores:
    """Metrics of rendered frames against held-out ``observations``, as defined in `PROTOCOL`.

    Args:
        render: renders the avatar.
        observations: held-out frames in the order of time.
        size: longest side in pixels; larger images are reduced, none is enlarged.
        face: locates mouth and eyes, and static segments; if None, the metrics of mouth and eyes and the steadiness are
            NaN.
        device: device on which metrics are computed; the CPU by default.
        perceptual: computes LPIPS; None to leave it out.
    """
    names = [(region, metric) for region in REGIONS for metric in METRICS]
    if perceptual:
        names.append(("whole", "lpips"))
    rows, changes = [], []
    before: FrameComparison | None = None
    for now in compare(render, observations, size, face, device):
        values = [*_figures(now).flatten()]
        if perceptual:
            values.append(perceptual(now.picture, now.truth))
        rows.append(torch.stack(values))
        if before and face and _still(before, now, face):
            changes.append(_changes(before, now))
        before = now
    figures = torch.stack(rows).cpu() if rows else torch.zeros((0, len(names)))
    return Scores(
        _nested(names, figures.nanmean(0).tolist()),
        [_nested(names, row) for row in figures.tolist()],
        [observation.frame_id for observation in observations],
        _steadiness(changes),
    )


def score_psnr(
    render: Render, observations: Sequence[Observation], size: int, device: torch.device | None = None
) -> tuple[float, float]:
    """Mean PSNR in dB of the whole image and of the head region, as in `score`, without the slower metrics.

    Both are NaN without observations.
    """
    rows = [
        torch.stack([_psnr(squared_error(c.picture, c.truth), c.regions[region]) for region in ("whole", "head")])
        for c in compare(render, observations, size, None, device)
    ]
    whole, head = torch.stack(rows).nanmean(0).tolist() if rows else (math.nan, math.nan)
    return whole, head


def _figures(compared: FrameComparison) -> torch.Tensor:
    """Metrics (regions, metrics) of one comparison; NaN where a region is empty."""
    picture, truth = compared.picture, compared.truth
    error, similar, flip = squared_error(picture, truth), ssim_map(picture, truth), flip_map(picture, truth)
    inner = slice(SSIM_MARGIN, -SSIM_MARGIN)
    rows = []
    for name in REGIONS:
        region = compared.regions[name]
        rows.append(torch.stack([_psnr(error, region), _mean(similar, region[inner, inner]), _mean(flip, region)]))
    return torch.stack(rows)


def _mean(values: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Mean over the region, NaN if it is empty; does not synchronise with the device."""
    return (values * region).sum() / region.sum()


def _psnr(error: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """PSNR over the region as in `metrics.psnr`, as a tensor on the device."""
    mean = _mean(error, region)
    return torch.where(mean < EQUAL, 100.0, -10.0 * torch.log10(mean))


def _still(before: FrameComparison, now: FrameComparison, face: FaceRegions) -> bool:
    """Whether two frames are successive and the tracked face hardly moves between them."""
    first, second = before.observation, now.observation
    if second.frame_id != first.frame_id + 1 or before.camera != now.camera:
        return False
    return face.motion(first.state, second.state, now.camera) < STILL * max(now.camera.width, now.camera.height)


def _changes(before: FrameComparison, now: FrameComparison) -> torch.Tensor:
    """Mean absolute change (2,) of rendered frames and of footage in the union of the head regions."""
    region = before.regions["head"] | now.regions["head"]
    pairs = ((before.picture, now.picture), (before.truth, now.truth))
    return torch.stack([_mean((b - a).abs().mean(-1), region) for a, b in pairs])


def _steadiness(changes: list[torch.Tensor]) -> Steadiness:
    if not changes:
        return Steadiness()
    rendered, footage = torch.stack(changes).nanmean(0).tolist()
    return Steadiness(rendered, footage, len(changes))


def _nested(names: list[tuple[str, str]], values: list[float]) -> dict[str, dict[str, float]]:
    nested: dict[str, dict[str, float]] = {region: {} for region in REGIONS}
    for (region, metric), value in zip(names, values, strict=True):
        nested[region][metric] = value
    return nested

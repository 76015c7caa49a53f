"""Detection of appearance changes (light, glasses, hair or hat) by comparing camera frames with rendered frames.

`AppearanceProbe` renders the avatar in a frame's head state and measures the PSNR by image region, before and after
matching the light (one gain per channel and one gamma).  `AppearanceBaseline`, a pure function of these samples, keeps
the usual values.  A sudden and lasting difference counts as a change of the light if matching the light raises the
PSNR, otherwise as a change of the region whose PSNR fell.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from insta_runtime.backends import Backend
    from insta_runtime.render.model import AvatarModel
    from insta_runtime.render.renderer import Snapshot
    from insta_runtime.types import Camera, Float32, Float64, HeadState, Observation

Mask = NDArray[np.bool_]

SIDE: Final = 128
"""Maximum width and height in pixels at which frames are compared."""
DARK, BRIGHT = 0.03, 0.97
"""Range of colour values (0 to 1) used to match the light; darker pixels are noise, brighter ones clipped."""
GAIN: Final = (1 / 3, 3.0)
"""Range of the gain of each colour channel when the light is matched."""
GAMMA: Final = (0.5, 2.0)
"""Range of the gamma exponent when the light is matched."""
EYES: Final = 0.55
"""Half height of the eye region, in distances between the eyes; its half width is 2.5 times as large."""
TOP: Final = 0.85
"""Height above the eyes, in distances between the eyes, above which pixels belong to the region of hair or hat."""


MAX_SAMPLES: Final = 30
"""Number of newest samples in the baseline."""
MIN_SAMPLES: Final = 6
"""Minimum number of samples before the baseline is valid."""
LIGHT_DB: Final = 2.5
"""Minimum PSNR gain (dB) from matching the light, above the usual, at which a sample indicates a change of light."""
REGION_DB: Final = 5.0
"""Minimum PSNR loss (dB) of a region against the rest, above the usual, at which a sample indicates a change there."""
MIN_DEVIATIONS: Final = 3.0
"""Minimum number of robust standard deviations above the usual at which a sample is an outlier."""
MIN_OUTLIERS: Final = 3
"""Number of outliers of the same kind, without a usual sample in between, that make a change."""
MAX_OUTLIERS: Final = 6
"""Maximum number of newest outliers that are kept."""
LASTING_S: Final = 3.0
"""Minimum seconds between the first and the last outlier; a hand before the face or a grimace is shorter."""
PROBE_S: Final = 1.0
"""Minimum seconds between two comparisons of a verified subject."""
FROZEN_PROBE_S: Final = 10.0
"""Minimum seconds between two comparisons while training is paused, once the baseline is complete."""
TIME_SHARE: Final = 0.05
"""Maximum fraction of the training thread's time spent on comparisons."""
LOADED_DB: Final = 20.0
"""Baseline PSNR (dB) assumed for an avatar of an earlier call before there are samples."""


class ImageRegion(StrEnum):
    """Region of a frame with a separate PSNR: around the eyes, above the brows, or the rest of the head."""

    EYES = "eyes"
    TOP = "top"
    REST = "rest"


class AppearanceChange(StrEnum):
    """Change of a subject's appearance: the light, the region around the eyes, or the region above the brows."""

    LIGHT = "light"
    EYES = "glasses"
    TOP = "hair or hat"


@dataclass(frozen=True)
class AppearanceSample:
    """Comparison of one frame with the avatar's rendering: PSNR (dB) of the head and of its regions.

    Attributes:
        plain_db: PSNR of the head without matching the light.
        lit_db: PSNR of the head with the light matched.
        eyes_db, top_db, rest_db: PSNR of the region around the eyes, of that above the brows, and of the rest of the
            head, with the light matched; NaN for a region that is not in the frame.
    """

    plain_db: float
    lit_db: float
    eyes_db: float
    top_db: float
    rest_db: float

    def unlit_db(self) -> float:
        """PSNR gain (dB) on the head from matching the light."""
        return self.lit_db - self.plain_db

    def eyes_apart_db(self) -> float:
        """PSNR (dB) of the rest of the head minus that of the region around the eyes."""
        return self.rest_db - self.eyes_db

    def top_apart_db(self) -> float:
        """PSNR (dB) of the rest of the head minus that of the region above the brows."""
        return self.rest_db - self.top_db


@dataclass(frozen=True)
class AppearanceBaseline:
    """Immutable baseline of a subject's usual appearance, with the newest outliers; `after` returns the next one.

    Only differences within a frame are used, since the overall PSNR varies with the pose.

    Attributes:
        usual: newest samples of the usual appearance, at most `MAX_SAMPLES`.
        outliers: (monotonic second, sample) of the newest outliers.
    """

    usual: tuple[AppearanceSample, ...] = ()
    outliers: tuple[tuple[float, AppearanceSample], ...] = ()

    @property
    def usual_db(self) -> float | None:
        """Median PSNR (dB) with matched light; None with fewer than `MIN_SAMPLES` samples."""
        return median(sample.lit_db for sample in self.usual) if len(self.usual) >= MIN_SAMPLES else None

    def after(self, sample: AppearanceSample, now: float) -> tuple[AppearanceBaseline, AppearanceChange | None]:
        """(Next baseline, detected change or None) after ``sample``, measured at monotonic second ``now``."""
        if len(self.usual) < MIN_SAMPLES or self._outlier_kind(sample) is None:
            return AppearanceBaseline((*self.usual, sample)[-MAX_SAMPLES:]), None
        outliers = (*self.outliers, (now, sample))[-MAX_OUTLIERS:]
        if len(outliers) < MIN_OUTLIERS or now - outliers[0][0] < LASTING_S:
            return replace(self, outliers=outliers), None
        (kind, times), *_ = Counter(self._outlier_kind(each) for _, each in outliers).most_common()
        if times < MIN_OUTLIERS:
            return replace(self, outliers=outliers), None
        # The changed appearance becomes the baseline.
        return AppearanceBaseline(tuple(each for _, each in outliers)), kind

    def _outlier_kind(self, sample: AppearanceSample) -> AppearanceChange | None:
        """The change that ``sample`` indicates; None if it is usual, or worse in all regions (a new pose)."""
        if self._excess(sample, AppearanceSample.unlit_db) > LIGHT_DB:
            return AppearanceChange.LIGHT
        regions = {
            AppearanceChange.EYES: self._excess(sample, AppearanceSample.eyes_apart_db),
            AppearanceChange.TOP: self._excess(sample, AppearanceSample.top_apart_db),
        }
        worst = max(regions, key=lambda region: regions[region])
        return worst if regions[worst] > REGION_DB else None

    def _excess(self, sample: AppearanceSample, measure: Callable[[AppearanceSample], float]) -> float:
        """Value (dB) of ``measure`` above its median; 0 if within the usual variation, or if that is unknown."""
        known = [value for each in self.usual if math.isfinite(value := measure(each))]
        value = measure(sample)
        if len(known) < MIN_SAMPLES // 2 or not math.isfinite(value):
            return 0.0
        middle = median(known)
        deviation = 1.4826 * median(abs(each - middle) for each in known)
        excess = value - middle
        return excess if excess > MIN_DEVIATIONS * deviation else 0.0


class AppearanceProbe:
    """Compares frames with the avatar, rendered in the same head state.  Used by the training thread."""

    def __init__(self, model: AvatarModel, backend: Backend) -> None:
        from insta_runtime.backends import make_renderer

        self._rig, self._shape = model.rig, model.shape
        self._renderer = make_renderer(model, backend, urgent=False)

    def load(self, snapshot: Snapshot) -> None:
        """Use the weights of ``snapshot`` for later comparisons."""
        self._renderer.load(snapshot)

    def measure(self, observation: Observation) -> AppearanceSample | None:
        """Compare a frame with the avatar in the same head state; None if the head covers less than 1 % of it."""
        truth, camera = observation.premultiplied(SIDE)
        image = self._renderer.render(observation.state, camera).rgba
        return compare(np.asarray(image), truth.numpy(), self._eyes(observation.state, camera))

    def _eyes(self, state: HeadState, camera: Camera) -> Float64:
        """Eye positions (2, 2) in pixels; rows: left, right eye of the subject; columns: x, y."""
        from insta_runtime.geometry import rotation_matrix
        from insta_runtime.head.model import EYE_LEFT, EYE_RIGHT

        head = self._rig.model
        group = head.vertex_group()
        rest = head.template + np.einsum("s,svx->vx", self._shape, head.shape_dirs)
        eyes = np.stack([rest[group == each].mean(0) for each in (EYE_LEFT, EYE_RIGHT)])
        at = eyes @ rotation_matrix(state.rotation.astype(np.float64)).T + state.translation
        return np.column_stack(
            [camera.fx * at[:, 0] / at[:, 2] + camera.cx, camera.fy * at[:, 1] / at[:, 2] + camera.cy]
        )


class AppearanceMonitor:
    """Compares the newest frame with the published snapshot of the avatar: a verified subject's once per `PROBE_S`.

    `set_observation` and `set_unverified` are called by the tracking thread, `run_once` by the training thread.

    Attributes:
        worse_db: PSNR loss (dB, median) of unverified frames against the usual PSNR; None if unknown.
        baseline: usual appearance of the subject.
    """

    def __init__(
        self,
        make_probe: Callable[[], AppearanceProbe],
        loaded: bool,
        stream: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """``make_probe`` is called at the first comparison; ``loaded``: the avatar was trained in an earlier call.

        ``stream`` returns the context manager in which weights are copied: the trainer's CUDA stream, which wrote them.
        """
        self.worse_db: float | None = None
        self.baseline = AppearanceBaseline()
        self._make_probe = make_probe
        self._probe: AppearanceProbe | None = None
        self._loaded, self._stream = loaded, stream
        self._newest: tuple[Observation, bool] | None = None  # and whether it is unverified
        self._unverified: list[AppearanceSample] = []
        self._snapshot: Snapshot | None = None
        self._due = 0.0

    def set_observation(self, observation: Observation) -> None:
        """Set the newest frame of the verified subject; resets `worse_db`."""
        self._newest = observation, False
        self.worse_db = None

    def set_unverified(self, observation: Observation) -> None:
        """Set the newest frame of a face that may be another subject's; it updates `worse_db`."""
        self._newest = observation, True

    def run_once(self, published: Snapshot, now: float, *, seldom: bool = False) -> AppearanceChange | None:
        """Compare the newest frame with the ``published`` snapshot, if a comparison is due at monotonic second ``now``.

        Returns a detected change of appearance, otherwise None.  ``seldom``: compare only every `FROZEN_PROBE_S` once
        the baseline is complete, while training is paused.
        """
        newest = self._newest
        if newest is None:
            return None
        observation, unverified = newest
        if not unverified:
            self._unverified.clear()
        if now < self._due and not unverified:
            return None
        self._newest = None
        if self._probe is None:
            self._probe = self._make_probe()
        if published is not self._snapshot:
            with self._stream():
                self._probe.load(published)
            self._snapshot = published
        began = time.monotonic()
        sample = self._probe.measure(observation)
        took = time.monotonic() - began
        interval = FROZEN_PROBE_S if seldom and len(self.baseline.usual) == MAX_SAMPLES else PROBE_S
        self._due = now + took + max(interval, took / TIME_SHARE)
        if sample is None:
            return None
        if unverified:
            self._add_unverified(sample)
            return None
        self.baseline, change = self.baseline.after(sample, now)
        return change

    def _add_unverified(self, sample: AppearanceSample) -> None:
        usual = self.baseline.usual_db
        if usual is None and self._loaded:
            usual = LOADED_DB
        self._unverified = [*self._unverified[1 - MAX_SAMPLES :], sample]
        if usual is not None and len(self._unverified) >= MIN_OUTLIERS:
            self.worse_db = usual - median(each.lit_db for each in self._unverified)


def compare(image: Float32, truth: Float32, eyes: Float64) -> AppearanceSample | None:
    """Compare a rendered ``image`` with the frame ``truth``, both (H, W, 4) with premultiplied alpha.

    ``eyes`` (2, 2) are the eye positions in pixels; rows: left, right eye; columns: x, y.  None if the head common to
    both images covers less than 1 % of them.
    """
    head = np.maximum(image[..., 3], truth[..., 3]) > 0.5
    both = np.minimum(image[..., 3], truth[..., 3]) > 0.9
    if both.sum() < 0.01 * both.size:
        return None
    matched = match_light(image, truth, both)
    plain, lit = (_error(each, truth) for each in (image, matched))
    regions = _region_masks(head.shape, eyes)
    eyes_db, top_db, rest_db = (_decibel(lit[head & regions[region]]) for region in ImageRegion)
    return AppearanceSample(_decibel(plain[head]), _decibel(lit[head]), eyes_db, top_db, rest_db)


def match_light(image: Float32, truth: Float32, where: Mask) -> Float32:
    """Return a copy of ``image`` (H, W, 4) whose light is matched to ``truth``; both have premultiplied alpha.

    Fits a bounded gain for each channel and one gamma by trimmed least squares of log colours in the mask ``where``
    (H, W); the third of the pixels with the largest error is left out.
    """
    alpha = np.maximum(image[..., 3:], 1e-3)
    colour = np.clip(image[..., :3] / alpha, DARK, BRIGHT)
    wanted = np.clip(truth[where][:, :3] / truth[where][:, 3:], DARK, BRIGHT)
    source, target = np.log(colour[where]), np.log(wanted)
    use = np.ones(len(source), bool)
    for _ in range(3):
        mean_source, mean_target = source[use].mean(0), target[use].mean(0)
        x, y = source[use] - mean_source, target[use] - mean_target
        gamma = float(np.clip((x * y).sum() / max((x * x).sum(), 1e-9), *GAMMA))
        gain = np.clip(mean_target - gamma * mean_source, *np.log(GAIN))
        left = np.abs(gain + gamma * source - target).sum(1)
        use = left <= np.quantile(left, 2 / 3)
    matched = image.copy()
    matched[..., :3] *= np.exp(gain + (gamma - 1.0) * np.log(colour))
    matched[..., :3] = np.clip(matched[..., :3], 0.0, matched[..., 3:])
    return matched


def _error(image: Float32, truth: Float32) -> Float32:
    """Squared error (H, W) of the images composited over white, averaged over the channels."""
    over = [each[..., :3] + 1.0 - each[..., 3:] for each in (image, truth)]
    error: Float32 = np.square(over[0] - over[1]).mean(-1)
    return error


def _region_masks(shape: tuple[int, ...], eyes: Float64) -> dict[ImageRegion, Mask]:
    """Mask (H, W) of each region, from the positions (2, 2) px of the eyes."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    along = eyes[0] - eyes[1]
    apart = max(float(np.hypot(*along)), 1.0)
    along = along / apart
    if along[0] < 0.0:
        along = -along
    middle = eyes.mean(0)
    side = ((x - middle[0]) * along[0] + (y - middle[1]) * along[1]) / apart
    above = ((x - middle[0]) * along[1] - (y - middle[1]) * along[0]) / apart
    around = (np.abs(above) < EYES) & (np.abs(side) < 2.5 * EYES)
    top = above > TOP
    return {ImageRegion.EYES: around, ImageRegion.TOP: top, ImageRegion.REST: ~around & ~top}


def _decibel(error: Float32) -> float:
    return -10.0 * math.log10(max(float(error.mean()), 1e-10)) if error.size else math.nan

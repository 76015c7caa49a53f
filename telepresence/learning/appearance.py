"""How a new picture differs from what the avatar shows in the same state, and what that says: light, glasses, hat.

`AppearanceProbe` measures a picture: the error before and after the light was matched (a gain for each channel and one gamma),
and where it is.  `AppearanceBaseline` keeps what is usual, and is a pure function of measured looks: what is suddenly and
lastingly otherwise is a change, of the light if matching it makes pictures better, or of the place that is worse off.
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
"""Pictures are looked at with this side at most, pixels: what is looked for is large."""
DARK, BRIGHT = 0.03, 0.97
"""Colours beyond these say nothing of the light: they are noise, or clipped."""
GAIN: Final = (1 / 3, 3.0)
GAMMA: Final = (0.5, 2.0)
"""Light changes within these; what is beyond is no light."""
EYES: Final = 0.55
"""Half the height of what glasses cover, in distances between the eyes; it is 2.5 times as wide as that."""
TOP: Final = 0.85
"""What is so far above the eyes, in distances between them, is hair or hat."""


USUAL: Final = 30
"""Looks that say what is usual ..."""
ENOUGH: Final = 6
"""... and how many do."""
LIGHT_DB: Final = 2.5
"""A look is odd if matching the light makes it better by so much more than usual ..."""
PLACE_DB: Final = 5.0
"""... or if a place is worse than the others by so much more than usual ..."""
SURE_SD: Final = 3.0
"""... and by so many robust standard deviations."""
LASTING: Final = 3
"""Looks in a row that must be odd in the same way ..."""
MOST: Final = 6
"""... of so many that are odd at all ..."""
LASTING_S: Final = 3.0
"""... over so many seconds: a hand before the face, or a grimace, is over by then."""
EVERY_S: Final = 1.0
"""Seconds between two looks at a person who is known, at least ..."""
SELDOM_S: Final = 10.0
"""... and while nothing is learned, which a change could spoil ..."""
PART: Final = 0.05
"""... and the part of the time that they may take."""
LEARNED_DB: Final = 20.0
"""What is taken for usual of an avatar from an earlier call, before it is known."""


class ImageRegion(StrEnum):
    """Where a picture differs."""

    EYES = "eyes"
    TOP = "top"
    REST = "rest"


class AppearanceChange(StrEnum):
    """What changed about one and the same person: the light, what is around the eyes, or above the brows."""

    LIGHT = "light"
    EYES = "glasses"
    TOP = "hair or hat"


@dataclass(frozen=True)
class AppearanceSample:
    """One picture against the avatar's: PSNR (dB) of the head as it is and with the light matched, and then by place.

    The places are around the eyes, above the brows, and all else; NaN where there is none of it in the picture.
    """

    plain_db: float
    lit_db: float
    eyes_db: float
    top_db: float
    rest_db: float

    def unlit_db(self) -> float:
        """How much better the picture is with the light matched."""
        return self.lit_db - self.plain_db

    def eyes_apart_db(self) -> float:
        """How much worse it is around the eyes than elsewhere."""
        return self.rest_db - self.eyes_db

    def top_apart_db(self) -> float:
        """How much worse it is above the brows than elsewhere."""
        return self.rest_db - self.top_db


@dataclass(frozen=True)
class AppearanceBaseline:
    """What looks are usual for a person, and which odd ones came since: a pure function of looks and their times.

    Only differences within a picture count: how well a picture is rendered at all differs from pose to pose.
    """

    usual: tuple[AppearanceSample, ...] = ()
    odd: tuple[tuple[float, AppearanceSample], ...] = ()

    @property
    def usual_db(self) -> float | None:
        """Median PSNR with the light matched, None before it is known."""
        return median(look.lit_db for look in self.usual) if len(self.usual) >= ENOUGH else None

    def after(self, look: AppearanceSample, now: float) -> tuple[AppearanceBaseline, AppearanceChange | None]:
        """Take in a ``look`` of second ``now``; what has changed, said once."""
        if len(self.usual) < ENOUGH or self._odd(look) is None:
            return AppearanceBaseline((*self.usual, look)[-USUAL:]), None
        odd = (*self.odd, (now, look))[-MOST:]
        if len(odd) < LASTING or now - odd[0][0] < LASTING_S:
            return replace(self, odd=odd), None
        (kind, times), *_ = Counter(self._odd(each) for _, each in odd).most_common()
        if times < LASTING:
            return replace(self, odd=odd), None
        # From now on that is what is usual.
        return AppearanceBaseline(tuple(each for _, each in odd)), kind

    def _odd(self, look: AppearanceSample) -> AppearanceChange | None:
        """What is odd about ``look``; None if it is as usual, or worse all over, as in a new pose."""
        if self._above(look, AppearanceSample.unlit_db) > LIGHT_DB:
            return AppearanceChange.LIGHT
        places = {AppearanceChange.EYES: self._above(look, AppearanceSample.eyes_apart_db), AppearanceChange.TOP: self._above(look, AppearanceSample.top_apart_db)}
        worst = max(places, key=lambda place: places[place])
        return worst if places[worst] > PLACE_DB else None

    def _above(self, look: AppearanceSample, measure: Callable[[AppearanceSample], float]) -> float:
        """By how many dB this is above what is usual and what varies; 0 where it is not known."""
        known = [value for each in self.usual if math.isfinite(value := measure(each))]
        value = measure(look)
        if len(known) < ENOUGH // 2 or not math.isfinite(value):
            return 0.0
        middle = median(known)
        deviation = 1.4826 * median(abs(each - middle) for each in known)
        above = value - middle
        return above if above > SURE_SD * deviation else 0.0


class AppearanceProbe:
    """Looks at pictures with a renderer of its own.  Belongs to the training thread."""

    def __init__(self, model: AvatarModel, backend: Backend) -> None:
        from insta_runtime.backends import make_renderer

        self._rig, self._shape = model.rig, model.shape
        self._renderer = make_renderer(model, backend, urgent=False)

    def load(self, snapshot: Snapshot) -> None:
        """Compare with this one from now on."""
        self._renderer.load(snapshot)

    def look(self, observation: Observation) -> AppearanceSample | None:
        """The avatar in the observation's state against its picture; None if hardly any head is in it."""

        truth, camera = observation.premultiplied(SIDE)
        picture = self._renderer.render(observation.state, camera).rgba
        return compare(np.asarray(picture), truth.numpy(), self._eyes(observation.state, camera))

    def _eyes(self, state: HeadState, camera: Camera) -> Float64:
        """(2, 2) px: where the left and the right eye are."""
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
    """Compares new pictures with what the avatar shows, now and then.

    `offer` and `consider` are called by the tracking thread, `work` by the training thread.

    Attributes:
        worse_db: by how much pictures that were considered are worse than usual (median); None before that is known.
    """

    def __init__(
        self,
        onlooker: Callable[[], AppearanceProbe],
        learned: bool,
        stream: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """``onlooker`` makes one when it is needed; ``learned``: the avatar was, in an earlier call.

        ``stream`` gives the context in which weights are copied: the trainer's, which wrote them.
        """
        self.worse_db: float | None = None
        self.appearance = AppearanceBaseline()
        self._make = onlooker
        self._onlooker: AppearanceProbe | None = None
        self._learned, self._stream = learned, stream
        self._newest: tuple[Observation, bool] | None = None
        self._considered: list[AppearanceSample] = []
        self._loaded: Snapshot | None = None
        self._due = 0.0

    def offer(self, observation: Observation) -> None:
        """A picture of the person."""
        self._newest = observation, False
        self.worse_db = None

    def consider(self, observation: Observation) -> None:
        """A picture of a face that may be somebody else's."""
        self._newest = observation, True

    def work(self, shown: Snapshot, now: float, *, seldom: bool = False) -> AppearanceChange | None:
        """AppearanceSample at the newest picture if it is time, with the weights ``shown``; what has changed, said once.

        ``seldom``: nothing is learned.  Once it is well known what is usual, people are looked at less often then.
        """
        newest = self._newest
        if newest is None:
            return None
        observation, considered = newest
        if not considered:
            self._considered.clear()
        if now < self._due and not considered:
            return None
        self._newest = None
        if self._onlooker is None:
            self._onlooker = self._make()
        if shown is not self._loaded:
            with self._stream():
                self._onlooker.load(shown)
            self._loaded = shown
        began = time.monotonic()
        look = self._onlooker.look(observation)
        took = time.monotonic() - began
        every = SELDOM_S if seldom and len(self.appearance.usual) == USUAL else EVERY_S
        self._due = now + took + max(every, took / PART)
        if look is None:
            return None
        if considered:
            self._consider(look)
            return None
        self.appearance, change = self.appearance.after(look, now)
        return change

    def _consider(self, look: AppearanceSample) -> None:
        usual = self.appearance.usual_db
        if usual is None and self._learned:
            usual = LEARNED_DB
        self._considered = [*self._considered[1 - USUAL :], look]
        if usual is not None and len(self._considered) >= LASTING:
            self.worse_db = usual - median(each.lit_db for each in self._considered)


def compare(picture: Float32, truth: Float32, eyes: Float64) -> AppearanceSample | None:
    """Two premultiplied pictures (H, W, 4) of one state; ``eyes`` (2, 2) px.  None if hardly any head is in them."""
    head = np.maximum(picture[..., 3], truth[..., 3]) > 0.5
    both = np.minimum(picture[..., 3], truth[..., 3]) > 0.9
    if both.sum() < 0.01 * both.size:
        return None
    matched = match_light(picture, truth, both)
    plain, lit = (_error(each, truth) for each in (picture, matched))
    where = _places(head.shape, eyes)
    eyes_db, top_db, rest_db = (_decibel(lit[head & where[place]]) for place in ImageRegion)
    return AppearanceSample(_decibel(plain[head]), _decibel(lit[head]), eyes_db, top_db, rest_db)


def match_light(picture: Float32, truth: Float32, where: Mask) -> Float32:
    """``picture`` (H, W, 4) in the light of ``truth``: least squares of log colours ``where`` both are solid.

    A gain for each channel and one gamma, bounded; the worst third of the pixels is left out.
    """
    alpha = np.maximum(picture[..., 3:], 1e-3)
    colour = np.clip(picture[..., :3] / alpha, DARK, BRIGHT)
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
    matched = picture.copy()
    matched[..., :3] *= np.exp(gain + (gamma - 1.0) * np.log(colour))
    matched[..., :3] = np.clip(matched[..., :3], 0.0, matched[..., 3:])
    return matched


def _error(picture: Float32, truth: Float32) -> Float32:
    """(H, W): squared error over white, averaged over the channels."""
    over = [each[..., :3] + 1.0 - each[..., 3:] for each in (picture, truth)]
    error: Float32 = np.square(over[0] - over[1]).mean(-1)
    return error


def _places(shape: tuple[int, ...], eyes: Float64) -> dict[ImageRegion, Mask]:
    """The pixels (H, W) of each place."""
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

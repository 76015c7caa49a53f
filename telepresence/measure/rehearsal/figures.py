"""The figures of a call, once it is over, from what was kept of it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from insta_runtime.backends import AnyRenderer, make_renderer
from insta_runtime.evaluation.protocol import score_psnr
from insta_runtime.types import Bytes
from telepresence.measure.rehearsal.plan import NEXT_S
from telepresence.measure.rehearsal.record import Fade, Published, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from insta_runtime.types import Observation
    from telepresence.learning.learner import Learner

SETTLED_S: Final = 5.0
"""Intervals count from so many seconds of the call on: before, the call is being set up."""
GOOD_DB: Final = 22.0
"""Whole frame, from which on a picture counts as one of the person."""
EARLY_PICTURES: Final = 24
LONGEST: Final = 5  # intervals whose moment is told
Point = dict[str, Any]

MEANINGS: Final = {
    "seconds": "count from the first picture of the camera; kernels were compiled before it",
    "psnr_next2s": "PSNR, whole frame and head, as in `fit` (truth over white, area averaged, mean of pictures), of "
    "the weights that were the newest published at a moment, on the tracked pictures captured in the 2 s after it",
    "unseen": "those weights have not been trained on any of these pictures in this round of the clip; where "
    "`seen_in_earlier_rounds` is true, the clip had begun anew and earlier rounds showed the same pictures",
    "interval_ms": "between pictures handed to the encoder at the declared rate, new or repeated, after the first 5 s",
    "fresh_interval_ms": "between new pictures handed to the encoder, after the first 5 s",
    "held_back": "what the daemon itself said of held-back recent pictures, PSNR of the head region",
    "forgetting_db": "PSNR (whole frame) of the last weights on pictures of the first minute (of a short call: its "
    "first half) minus that of the weights at the end of that time; positive: nothing was forgotten",
    "publish_change_ratio": "the pictures of a publication and its cross-fade are drawn again, with the states and at "
    "the side of the call, over white: c is the mean absolute change of the whole picture from one to the next if the "
    "weights stay, d with the weights as they were shown; 1 + max(d - c) / median(c), the maximum over the pictures of "
    "the fade, the median over all pictures looked at; the median over publications",
    "seconds_to_22db": "from the first tracked face to the first moment of the curve at which viewers saw the avatar, "
    "and its weights reached 22 dB (whole frame) on the next 2 s",
    "first_picture_s": "from the first tracked face to the first picture that showed the head (the coloured mesh)",
}


class Drawer:
    """Draws with weights that a call has published, one renderer for all of a learner's."""

    def __init__(self, learner: Learner, clock: Callable[[], float] = time.monotonic) -> None:
        """By the seconds of ``clock`` weights fade in, in pictures that are drawn by `AnyRenderer.picture`."""
        model = copy.copy(learner.avatar.model)
        # A renderer looks at its model's code when weights are loaded, as in a call, where that learns on.
        self._code = model.code = copy.copy(model.code)
        self.renderer: AnyRenderer = make_renderer(model, learner.backend, clock=clock)
        self._published: Published | None = None

    def load(self, published: Published) -> None:
        """Draw with these weights, and codes as they were told then."""
        if published is not self._published:
            vars(self._code).update(vars(published.code))
            self.renderer.load(published.snapshot)
            self._published = published


class Judge:
    """Measures weights that a call has published."""

    def __init__(self, size: int) -> None:
        """``size`` is the longest side of pictures that are measured, pixels."""
        self.size = size
        self._drawers: dict[int, Drawer] = {}

    def psnr(self, published: Published, observations: Sequence[Observation]) -> tuple[float, float]:
        """dB of the whole frame and of the head; NaN without pictures."""
        learner = published.learner
        if id(learner) not in self._drawers:
            self._drawers[id(learner)] = Drawer(learner)
        drawer = self._drawers[id(learner)]
        drawer.load(published)
        return score_psnr(drawer.renderer.render, observations, self.size, learner.avatar.model.device)


def curve(record: Record, judge: Judge, clip_s: float) -> list[Point]:
    """PSNR on the next 2 s against time; ``clip_s`` is how long a round of the clip takes."""
    points = []
    for moment in record.plan.moments:
        published = record.newest(moment)
        if published is None:
            continue
        unseen = record.after(moment, published.learner)
        if not unseen:
            continue
        whole, head = judge.psnr(published, unseen)
        points.append(
            {
                "seconds": moment,
                "psnr_db": whole,
                "head_psnr_db": head,
                "steps": published.steps,
                "published_s": published.at,
                "pictures": len(unseen),
                "seen_in_earlier_rounds": moment + NEXT_S > clip_s,
                "avatar_shown": record.avatar_shown(moment),
            }
        )
    return points


def point_at(points: Iterable[Point], moment: float) -> Point | None:
    """The point of a curve at exactly this moment, if it has one."""
    return next((point for point in points if point["seconds"] == moment), None)


def seconds_to(points: Iterable[Point], db: float, first_face: float | None) -> float | None:
    """From the first face to the first point at which viewers saw an avatar of at least ``db``."""
    good = (point["seconds"] for point in points if point["avatar_shown"] and point["psnr_db"] >= db)
    first = next(good, None)
    return first - first_face if first is not None and first_face is not None else None


def forgetting(record: Record, judge: Judge) -> dict[str, Any]:
    """What the end of the call knows of its beginning: PSNR of early pictures then and at the end, and the gain."""
    then, now = record.newest(record.plan.early), record.newest(math.inf)
    early: list[Observation] = []
    if then is not None and now is not None and _same_person(then, now):
        early = _spread(record.until(record.plan.early, then.learner), EARLY_PICTURES)
    if then is None or now is None or not early:
        return {"forgetting_db": None}
    first, last = judge.psnr(then, early), judge.psnr(now, early)
    return {
        "forgetting_db": last[0] - first[0],
        "head_forgetting_db": last[1] - first[1],
        "early_s": record.plan.early,
        "early_pictures": len(early),
        "early_psnr_db_then": first[0],
        "early_psnr_db_at_end": last[0],
    }


def publish_change(fades: Sequence[Fade]) -> dict[str, Any]:
    """How much publications show in the picture, as `MEANINGS` says."""
    whole = [fade for fade in fades if len(fade.drawn) > 2]
    replays: dict[int, _Replay] = {}
    pairs = []
    for fade in whole:
        learner = fade.after.learner
        if id(learner) not in replays:
            replays[id(learner)] = _Replay(learner)
        pairs.append(replays[id(learner)].changes(fade))
    if not pairs:
        return {"publish_change_ratio": None, "publish_change": None}
    usual = median(change for _, still in pairs for change in still)
    if usual <= 0.0:
        return {"publish_change_ratio": None, "publish_change": None}
    ratios = [1.0 + max(d - c for d, c in zip(shown, still, strict=True)) / usual for shown, still in pairs]
    spread = {
        "publications": len(ratios),
        "p50": median(ratios),
        "p95": float(np.percentile(ratios, 95)),
        "max": max(ratios),
        "usual_change": usual,
        "each": [[fade.after.at, ratio] for fade, ratio in zip(whole, ratios, strict=True)],
    }
    return {"publish_change_ratio": spread["p50"], "publish_change": spread}


def intervals(times: Sequence[float], began: float, lasted: float) -> dict[str, Any] | None:
    """``p50, p99, max`` in ms between moments (seconds) of the call, and how many there were; None without.

    The call ``began`` then and ``lasted`` so long; its first `SETTLED_S` do not count.  ``longest`` says when, in
    seconds since it began, and how many ms the longest lasted.
    """
    late = np.asarray([at for at in times if SETTLED_S <= at - began <= lasted], dtype=np.float64)
    if len(late) < 2:
        return None
    gaps = 1000.0 * np.diff(late)
    p50, p99 = np.percentile(gaps, (50.0, 99.0))
    longest = [[float(late[i] - began), float(gaps[i])] for i in gaps.argsort()[::-1][:LONGEST]]
    return {"p50": float(p50), "p99": float(p99), "max": float(gaps.max()), "count": len(gaps), "longest": longest}


def _same_person(one: Published, other: Published) -> bool:
    """Whether weights are of the same head; somebody who came back may have got another learner."""
    return np.array_equal(one.learner.avatar.model.shape, other.learner.avatar.model.shape)


class _Replay:
    """Draws what viewers saw of a publication once more."""

    def __init__(self, learner: Learner) -> None:
        self._now = 0.0
        self._drawer = Drawer(learner, lambda: self._now)

    def changes(self, fade: Fade) -> tuple[list[float], list[float]]:
        """Mean absolute change from picture to picture: with the weights as shown, and with those before it."""
        first = fade.drawn[0]
        self._drawer.load(fade.before)
        self._drawer.renderer.render(first.state, first.camera)  # nothing fades any more
        still = self._series(fade, publishing=False)
        return self._series(fade, publishing=True), still

    def _series(self, fade: Fade, *, publishing: bool) -> list[float]:
        side = fade.drawn[0].camera
        white = np.ones((side.height, side.width, 3), np.float32)
        pictures: list[Bytes] = []
        for number, drawn in enumerate(fade.drawn):
            if number == 1 and publishing:  # the display takes weights over right after a picture
                self._drawer.load(fade.after)
            self._now = drawn.at
            view = drawn.camera.scaled(side.width, side.height)
            pictures.append(self._drawer.renderer.picture(drawn.state, view, white))
        return [float(np.abs(b.astype(np.int16) - a).mean()) for a, b in pairwise(pictures)]


def _spread(observations: Sequence[Observation], count: int) -> list[Observation]:
    picked = np.linspace(0, len(observations) - 1, min(count, len(observations))).round().astype(int)
    return [observations[i] for i in picked]

"""Figures of a rehearsed call, computed from its record when it is over."""

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
from telepresence.measure.offline.recordings import evenly_spaced
from telepresence.measure.rehearsal.call_record import CallRecord, PublicationCrossfade, PublishedSnapshot
from telepresence.measure.rehearsal.measurement_plan import NEXT_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from insta_runtime.types import Observation
    from telepresence.learning.learner import Learner

SETTLED_S: Final = 5.0
"""Seconds at the beginning of a call that do not count in the intervals between frames."""
GOOD_DB: Final = 22.0
"""PSNR of the whole frame, in dB, from which on the avatar counts as a likeness (``seconds_to_22db``)."""
EARLY_FRAMES: Final = 24
"""Number of early observations that forgetting is measured on."""
LONGEST_INTERVALS: Final = 5
"""Number of longest intervals between frames that are listed with their moment."""
CurvePoint = dict[str, Any]
"""One point of the likeness curve, as `likeness_curve` returns it."""

MEANINGS: Final = {
    "seconds": "count from the first camera frame; kernels were compiled before it",
    "psnr_next2s": "PSNR, whole frame and head, as in `fit` (truth over white, area averaged, mean over frames), of "
    "the newest weights published at a moment, on the tracked frames captured in the 2 s after it",
    "unseen": "those weights have not been trained on any of these frames in this round of the clip; where "
    "`seen_in_earlier_rounds` is true, the clip had started again and earlier rounds showed the same frames",
    "interval_ms": "between frames handed to the encoder at the declared rate, new or repeated, after the first 5 s",
    "fresh_interval_ms": "between new frames handed to the encoder, after the first 5 s",
    "held_back": "the daemon's own measurement on held-back recent frames, PSNR of the head region",
    "forgetting_db": "PSNR (whole frame) of the last weights on frames of the first minute (of a short call: its "
    "first half) minus that of the weights at the end of that time; positive: nothing was forgotten",
    "publish_change_ratio": "the frames of a publication and its cross-fade are rendered again, with the states and at "
    "the size of the call, over white: c is the mean absolute change between successive frames if the weights stay the "
    "same, d with the weights as they were shown; 1 + max(d - c) / median(c), the maximum over the frames of the "
    "cross-fade, the median over all frames of all publications measured; the median over publications",
    "seconds_to_22db": "from the first tracked face to the first moment of the curve at which viewers saw the avatar "
    "and its weights reached 22 dB (whole frame) on the next 2 s",
    "first_picture_s": "from the first tracked face to the first frame that showed the head (the coloured mesh)",
}
"""Meaning of each figure in words, for the protocol of the figures."""


class PublicationRenderer:
    """Renders with snapshots that one learner published during a call."""

    def __init__(self, learner: Learner, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` returns the seconds by which `AnyRenderer.picture` fades in new weights."""
        model = copy.copy(learner.avatar.model)
        # The renderer reads its model's expression code when weights are loaded; the learner's code may change later.
        self._code = model.code = copy.copy(model.code)
        self.renderer: AnyRenderer = make_renderer(model, learner.backend, clock=clock)
        self._loaded: PublishedSnapshot | None = None

    def load(self, published: PublishedSnapshot) -> None:
        """Load the weights and the expression code of a snapshot."""
        if published is not self._loaded:
            vars(self._code).update(vars(published.code))
            self.renderer.load(published.snapshot)
            self._loaded = published


class SnapshotScorer:
    """Measures the PSNR of snapshots that were published during a call."""

    def __init__(self, size: int) -> None:
        """``size`` is the longest side in pixels of the images that are compared."""
        self.size = size
        self._renderers: dict[int, PublicationRenderer] = {}

    def psnr(self, published: PublishedSnapshot, observations: Sequence[Observation]) -> tuple[float, float]:
        """PSNR in dB of the whole frame and of the head; NaN without observations."""
        learner = published.learner
        if id(learner) not in self._renderers:
            self._renderers[id(learner)] = PublicationRenderer(learner)
        renderer = self._renderers[id(learner)]
        renderer.load(published)
        return score_psnr(renderer.renderer.render, observations, self.size, learner.avatar.model.device)


def likeness_curve(record: CallRecord, scorer: SnapshotScorer, clip_s: float) -> list[CurvePoint]:
    """PSNR on the next, unseen 2 s at each moment of the plan; ``clip_s`` is the duration of one round of the clip."""
    points = []
    for moment in record.plan.moments:
        published = record.newest(moment)
        if published is None:
            continue
        unseen = record.observations_after(moment, published.learner)
        if not unseen:
            continue
        whole, head = scorer.psnr(published, unseen)
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


def curve_point(points: Iterable[CurvePoint], moment: float) -> CurvePoint | None:
    """Point of the likeness curve at exactly ``moment`` seconds; None if the curve has none there."""
    return next((point for point in points if point["seconds"] == moment), None)


def seconds_to(points: Iterable[CurvePoint], db: float, first_face: float | None) -> float | None:
    """Seconds from the first face to the first point at which viewers saw an avatar of at least ``db``; None: never."""
    good = (point["seconds"] for point in points if point["avatar_shown"] and point["psnr_db"] >= db)
    first = next(good, None)
    return first - first_face if first is not None and first_face is not None else None


def forgetting(record: CallRecord, scorer: SnapshotScorer) -> dict[str, Any]:
    """PSNR on early observations with the weights of that time and with the last ones, and the difference.

    ``forgetting_db`` is None where no early observations of the same subject were kept.
    """
    then, now = record.newest(record.plan.early), record.newest(math.inf)
    early: list[Observation] = []
    if then is not None and now is not None and _same_subject(then, now):
        early = evenly_spaced(record.observations_until(record.plan.early, then.learner), EARLY_FRAMES)
    if then is None or now is None or not early:
        return {"forgetting_db": None}
    first, last = scorer.psnr(then, early), scorer.psnr(now, early)
    return {
        "forgetting_db": last[0] - first[0],
        "head_forgetting_db": last[1] - first[1],
        "early_s": record.plan.early,
        "early_pictures": len(early),
        "early_psnr_db_then": first[0],
        "early_psnr_db_at_end": last[0],
    }


def publish_change(crossfades: Sequence[PublicationCrossfade]) -> dict[str, Any]:
    """How visible publications are in the video: ``publish_change_ratio`` of `MEANINGS`, and its distribution."""
    complete = [crossfade for crossfade in crossfades if len(crossfade.frames) > 2]
    replays: dict[int, _CrossfadeReplay] = {}
    pairs = []
    for crossfade in complete:
        learner = crossfade.after.learner
        if id(learner) not in replays:
            replays[id(learner)] = _CrossfadeReplay(learner)
        pairs.append(replays[id(learner)].changes(crossfade))
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
        "each": [[crossfade.after.at, ratio] for crossfade, ratio in zip(complete, ratios, strict=True)],
    }
    return {"publish_change_ratio": spread["p50"], "publish_change": spread}


def intervals(times: Sequence[float], began: float, lasted: float) -> dict[str, Any] | None:
    """Distribution of the intervals between ascending ``times`` of a call, all in seconds.

    The call started at ``began`` and took ``lasted``; its first `SETTLED_S` do not count.  Returns ``p50``, ``p99``,
    ``max`` in ms, their ``count``, and the ``longest`` as [seconds of the call, ms]; None for fewer than two times.
    """
    late = np.asarray([at for at in times if SETTLED_S <= at - began <= lasted], dtype=np.float64)
    if len(late) < 2:
        return None
    gaps = 1000.0 * np.diff(late)
    p50, p99 = np.percentile(gaps, (50.0, 99.0))
    longest = [[float(late[i] - began), float(gaps[i])] for i in gaps.argsort()[::-1][:LONGEST_INTERVALS]]
    return {"p50": float(p50), "p99": float(p99), "max": float(gaps.max()), "count": len(gaps), "longest": longest}


def _same_subject(one: PublishedSnapshot, other: PublishedSnapshot) -> bool:
    """Whether two snapshots have the same identity code; a subject that returned may have a new learner."""
    return np.array_equal(one.learner.avatar.model.shape, other.learner.avatar.model.shape)


class _CrossfadeReplay:
    """Renders the frames of cross-fades again, on their own clock."""

    def __init__(self, learner: Learner) -> None:
        self._now = 0.0
        self._renderer = PublicationRenderer(learner, lambda: self._now)

    def changes(self, crossfade: PublicationCrossfade) -> tuple[list[float], list[float]]:
        """Mean absolute change between successive frames: with the weights as shown, and with the old ones only."""
        first = crossfade.frames[0]
        self._renderer.load(crossfade.before)
        self._renderer.renderer.render(first.state, first.camera)  # ends any cross-fade that is under way
        still = self._series(crossfade, publishing=False)
        return self._series(crossfade, publishing=True), still

    def _series(self, crossfade: PublicationCrossfade, *, publishing: bool) -> list[float]:
        side = crossfade.frames[0].camera
        white = np.ones((side.height, side.width, 3), np.float32)
        images: list[Bytes] = []
        for number, frame in enumerate(crossfade.frames):
            if number == 1 and publishing:  # the display loads new weights right after a frame
                self._renderer.load(crossfade.after)
            self._now = frame.at
            view = frame.camera.scaled(side.width, side.height)
            images.append(self._renderer.renderer.picture(frame.state, view, white))
        return [float(np.abs(b.astype(np.int16) - a).mean()) for a, b in pairwise(images)]

"""Somebody else's expressions on the avatar's face: their neutral taken away, their range mapped on the person's.

Two faces that look relaxed have different weights, and a broad smile is a different number for everybody.  What travels
is how far a face is from its own neutral, in parts of its own range; the jaw, the lids and the gaze go with it.  Head
and neck move as the source's do, around the place and pose in which the avatar was learned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from insta_runtime.field.expression_stats import Repertoire
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, Float64, HeadState

CALM: Final = 0.3
"""The part of all states, those with the least expression, of which the neutral face is the median."""
REACH: Final = 0.95
"""The part of all states that stay within a unit's reach ..."""
LID_REACH: Final = 0.995
"""... and for lids: they are closed in few pictures, and must close."""
ENOUGH: Final = 50
"""States from which on a range counts as known."""
LEAST_REACH: Final = {"arkit52": 0.05, "flame": 0.25}
"""What a unit that nobody used reaches: noise, which is not to be stretched."""
GAIN: Final = (0.5, 1.75)
"""Bounds of what a range is stretched by."""

NOTE_NS: Final = 200_000_000
"""A live source is taken note of so often ..."""
RECALL_NS: Final = 1_000_000_000
"""... what is usual for it is found anew so often ..."""
EASE_S: Final = 2.0
"""... and taken over in about this time, so that the face does not jump."""


@dataclass(frozen=True)
class Habits:
    """What is usual for a face.

    Attributes:
        expression, jaw_pose, neck_pose, eye_pose, eyelids, translation: of the neutral face, as in `HeadState`.
        rotation: (3, 3) mean head pose.
        reach: (E,) how far from neutral each expression unit goes; NaN where that is not known.
        jaw_reach: the same of the jaw's angle, rad. lid_reach: (2,) of the lids.
    """

    expression: Float32
    jaw_pose: Float32
    neck_pose: Float32
    eye_pose: Float32
    eyelids: Float32
    translation: Float32
    rotation: Float64
    reach: Float32
    jaw_reach: Float32
    lid_reach: Float32

    @staticmethod
    def unknown(head: HeadModel, translation: Float32) -> Habits:
        """Of somebody of whom nothing is known but where the head shall be."""
        state = HeadState.neutral(len(head.expression_names))
        parts = {name: value for name, value in state.arrays().items() if name != "rotation"} | {
            "translation": translation
        }
        unknown = np.full(len(state.expression), np.nan, dtype=np.float32)
        return Habits(
            **parts,
            rotation=rotation_matrix(state.rotation),
            reach=unknown,
            jaw_reach=unknown[:1],
            lid_reach=unknown[:2],
        )

    @staticmethod
    def of(seen: Repertoire, head: HeadModel) -> Habits:
        """Of the states in ``seen``, of which there must be one at least."""
        expression = seen.column("expression")
        arkit = head.basis == "arkit52"
        rest = np.quantile(expression, 0.1, axis=0) if arkit else np.median(expression, axis=0)
        activity = np.abs(expression - rest).sum(axis=1)
        calm = activity <= np.quantile(activity, CALM)

        def neutral(name: str) -> Float32:
            return np.median(seen.column(name)[calm], axis=0).astype(np.float32)

        def reach(values: Float32, middle: Float32, part: float) -> Float32:
            if len(values) < ENOUGH:
                return np.full(values.shape[1], np.nan, dtype=np.float32)
            return np.quantile(np.abs(values - middle), part, axis=0).astype(np.float32)

        middle, jaw, lids = neutral("expression"), neutral("jaw_pose"), neutral("eyelids")
        reaches = reach(expression, middle, REACH)
        for unit, name in enumerate(head.expression_names):
            if "Blink" in name:
                reaches[unit] = reach(expression[:, unit : unit + 1], middle[unit], LID_REACH)[0]
        opening = np.linalg.norm(seen.column("jaw_pose") - jaw, axis=1)[:, None].astype(np.float32)
        return Habits(
            expression=middle,
            jaw_pose=jaw,
            neck_pose=neutral("neck_pose"),
            eye_pose=neutral("eye_pose").reshape(2, 3),
            eyelids=lids,
            translation=np.median(seen.column("translation"), axis=0).astype(np.float32),
            rotation=_nearest_rotation(np.mean([rotation_matrix(r) for r in seen.column("rotation")], axis=0)),
            reach=reaches,
            jaw_reach=reach(opening, np.zeros(1, np.float32), REACH),
            lid_reach=reach(seen.column("eyelids"), lids, LID_REACH),
        )

    def eased(self, other: Habits, part: float) -> Habits:
        """These, by ``part`` (0 to 1) nearer to ``other``; what was not known is taken over."""
        mixed = {}
        for field in fields(Habits):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            known = np.where(np.isnan(mine), theirs, mine)
            mixed[field.name] = (known + part * (theirs - known)).astype(mine.dtype)
        return Habits(**mixed | {"rotation": _nearest_rotation(mixed["rotation"])})


class Transfer:
    """Maps states of ``source`` to states of ``target``; both have the same ``head``."""

    def __init__(self, source: Habits, target: Habits, head: HeadModel) -> None:
        self._source, self._target = source, target
        self._arkit = head.basis == "arkit52"
        least = LEAST_REACH[head.basis]
        self._gain = _both_sides(_gain(source.reach, target.reach, least), head.expression_names)
        self._jaw_gain = _gain(source.jaw_reach, target.jaw_reach, 0.02)
        self._lid_gain = _gain(source.lid_reach, target.lid_reach, 0.2).mean()
        self._turn = target.rotation @ source.rotation.T

    def __call__(self, state: HeadState) -> HeadState:
        """What the target does when the source does ``state``."""
        source, target = self._source, self._target
        expression = target.expression + self._gain * (state.expression - source.expression)
        rotation = axis_angle(self._turn @ rotation_matrix(state.rotation))
        moved = {
            "expression": expression.clip(0.0, 1.0) if self._arkit else expression,
            "jaw_pose": target.jaw_pose + self._jaw_gain * (state.jaw_pose - source.jaw_pose),
            "neck_pose": target.neck_pose + state.neck_pose - source.neck_pose,
            "eye_pose": target.eye_pose + state.eye_pose - source.eye_pose,
            "eyelids": (target.eyelids + self._lid_gain * (state.eyelids - source.eyelids)).clip(0.0, 1.0),
            "rotation": rotation,
            "translation": target.translation + state.translation - source.translation,
        }
        return replace(state, **{name: value.astype(np.float32) for name, value in moved.items()})


class LiveTransfer:
    """`Transfer` for somebody who is only just being seen: what is usual for them is learned as they go.

    Args:
        target: gives the fingerprint of the person whom the avatar shows and what is usual for them, or None while
            there is none.
    """

    def __init__(self, head: HeadModel, target: Callable[[], tuple[str, Habits] | None]) -> None:
        self._head, self._target = head, target
        self._person: str | None = None
        self._seen = Repertoire(len(head.expression_names))
        self._usual: Habits | None = None
        self._newest: Habits | None = None
        self._noted_ns = self._found_ns = self._eased_ns = 0

    def __call__(self, state: HeadState, person: str | None, now_ns: int | None = None) -> HeadState:
        """What the avatar does when ``person`` (a `fingerprint`, or None if nobody knows) does ``state``.

        States of the avatar's own person and of nobody known stay as they are.
        """
        target = self._target() if person is not None else None
        if target is None or target[0] == person:
            return state
        if person != self._person:
            self._person, self._usual, self._newest = person, None, None
            self._seen = Repertoire(len(self._head.expression_names))
        now = time.monotonic_ns() if now_ns is None else now_ns
        newest = self._note(state, now)
        part = 1.0 - math.exp(-max(0, now - self._eased_ns) / (1e9 * EASE_S))
        self._usual = newest if self._usual is None else self._usual.eased(newest, part)
        self._eased_ns = now
        return Transfer(self._usual, target[1], self._head)(state)

    def meet(self, person: str, states: Iterable[HeadState]) -> None:
        """``person`` will come, and does what is in ``states``: nothing needs to be learned of them first."""
        self._person, self._usual, self._newest = person, None, None
        self._seen = Repertoire(len(self._head.expression_names))
        for state in states:
            self._seen.observe(state)

    def forget(self) -> None:
        """Learn anew what is usual for the source, from the next state on."""
        self._person = None

    def _note(self, state: HeadState, now: int) -> Habits:
        """What is usual for the source, as far as is known."""
        if self._newest is None or now - self._noted_ns >= NOTE_NS:
            self._seen.observe(state)
            self._noted_ns = now
        if self._newest is None or now - self._found_ns >= RECALL_NS:
            self._newest = Habits.of(self._seen, self._head)
            self._found_ns = now
        return self._newest


def _gain(source: Float32, target: Float32, least: float) -> Float32:
    """What differences from neutral are multiplied by; 1 where a range is not known or the source does not use it."""
    ratio = np.maximum(target, least) / np.maximum(source, least)
    usable = np.isfinite(ratio) & (np.nan_to_num(source) > least)
    return np.where(usable, ratio.clip(*GAIN), 1.0).astype(np.float32)


def _both_sides(gain: Float32, names: tuple[str, ...]) -> Float32:
    """The same gain for the left and the right of a unit: habits of one side are not the other person's."""
    place = {name: i for i, name in enumerate(names)}
    even = gain.copy()
    for name, left in place.items():
        right = place.get(name.removesuffix("Left") + "Right") if name.endswith("Left") else None
        if right is not None:
            even[left] = even[right] = 0.5 * (gain[left] + gain[right])
    return even


def _nearest_rotation(matrix: Float64) -> Float64:
    """The rotation nearest to a (3, 3) matrix that is almost one."""
    u, _, v = np.linalg.svd(matrix)
    flip = np.diag([1.0, 1.0, float(np.sign(np.linalg.det(u @ v)))])
    return np.asarray(u @ flip @ v, dtype=np.float64)

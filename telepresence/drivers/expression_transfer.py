"""Expression transfer (retargeting) of head states from a source subject to the subject of the avatar.

Faces at rest have different expression weights, and the same smile has different weights in different subjects.  The
deviation from the source's neutral face, relative to its range, is applied to the target's neutral face; likewise for
jaw, eyelids and gaze.  Head and neck move like the source's, relative to the mean pose and position in the
avatar's training frames.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from insta_runtime.field.state_reservoir import StateReservoir
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, Float64, HeadState

CALM: Final = 0.3
"""Fraction of the states, those with the weakest expression, whose median is taken as the neutral face."""
REACH: Final = 0.95
"""Quantile of a unit's absolute deviation from neutral that defines the unit's range."""
LID_REACH: Final = 0.995
"""Quantile that defines the range of the eyelids: higher, as they are closed in few frames but must close fully."""
ENOUGH: Final = 50
"""Minimum number of states from which a range is estimated."""
LEAST_REACH: Final = {"arkit52": 0.05, "flame": 0.25}
"""Minimum range of an expression unit, by expression basis; smaller ranges are noise, which is not amplified."""
GAIN: Final = (0.5, 1.75)
"""Bounds of the factor by which deviations from neutral are scaled."""

NOTE_NS: Final = 200_000_000
"""Minimum interval in ns between two states of a live source that are sampled for its statistics."""
UPDATE_NS: Final = 1_000_000_000
"""Minimum interval in ns between two updates of the statistics of a live source."""
EASE_S: Final = 2.0
"""Time constant in seconds with which new statistics are blended in, so that the face does not jump."""


@dataclass(frozen=True)
class ExpressionStats:
    """Statistics of a subject's head states: neutral face, mean head pose, and range of each unit.

    Attributes:
        expression, jaw_pose, neck_pose, eye_pose, eyelids: those of the neutral face, as in `HeadState`.
        translation: (3,) median head position in camera space, in metres.
        rotation: (3, 3) mean head rotation from head to camera space.
        reach: (E,) range of each expression unit around neutral; NaN if unknown.
        jaw_reach: (1,) range of the jaw's angle around neutral, in radians; NaN if unknown.
        lid_reach: (2,) range of the left and right eyelid's closure around neutral; NaN if unknown.
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
    def unknown(head: HeadModel, translation: Float32) -> ExpressionStats:
        """Default statistics of an unknown subject: the neutral state at ``translation``, and unknown ranges."""
        state = HeadState.neutral(len(head.expression_names))
        parts = {name: value for name, value in state.arrays().items() if name != "rotation"} | {
            "translation": translation
        }
        unknown = np.full(len(state.expression), np.nan, dtype=np.float32)
        return ExpressionStats(
            **parts,
            rotation=rotation_matrix(state.rotation),
            reach=unknown,
            jaw_reach=unknown[:1],
            lid_reach=unknown[:2],
        )

    @staticmethod
    def of_states(seen: StateReservoir, head: HeadModel) -> ExpressionStats:
        """Statistics of the states in ``seen``, which must contain at least one state."""
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
        return ExpressionStats(
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

    def moved_towards(self, other: ExpressionStats, part: float) -> ExpressionStats:
        """Interpolate towards ``other`` by ``part`` in [0, 1]; unknown values are replaced by those of ``other``."""
        mixed = {}
        for field in fields(ExpressionStats):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            known = np.where(np.isnan(mine), theirs, mine)
            mixed[field.name] = (known + part * (theirs - known)).astype(mine.dtype)
        return ExpressionStats(**mixed | {"rotation": _nearest_rotation(mixed["rotation"])})


class ExpressionTransfer:
    """Function that maps head states of the subject ``source`` to the subject ``target``, for the same head model."""

    def __init__(self, source: ExpressionStats, target: ExpressionStats, head: HeadModel) -> None:
        self._source, self._target = source, target
        self._arkit = head.basis == "arkit52"
        least = LEAST_REACH[head.basis]
        self._gain = _both_sides(_gain(source.reach, target.reach, least), head.expression_names)
        self._jaw_gain = _gain(source.jaw_reach, target.jaw_reach, 0.02)
        self._lid_gain = _gain(source.lid_reach, target.lid_reach, 0.2).mean()
        self._turn = target.rotation @ source.rotation.T

    def __call__(self, state: HeadState) -> HeadState:
        """Head state of the target that corresponds to ``state`` of the source."""
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
    """Expression transfer for a live source whose statistics are estimated while its states are received.

    Args:
        head: the head model of source and target.
        target: function that returns fingerprint and statistics of the avatar's subject; None while they are unknown.
    """

    def __init__(self, head: HeadModel, target: Callable[[], tuple[str, ExpressionStats] | None]) -> None:
        self._head, self._target = head, target
        self._fingerprint: str | None = None
        self._seen = StateReservoir(len(head.expression_names))
        self._current: ExpressionStats | None = None
        self._newest: ExpressionStats | None = None
        self._sampled_ns = self._updated_ns = self._faded_ns = 0

    def __call__(self, state: HeadState, fingerprint: str | None, now_ns: int | None = None) -> HeadState:
        """Map ``state`` of the subject with this fingerprint to the avatar; ``now_ns`` replaces the clock in tests.

        States of the avatar's own subject, and of an unknown subject (None), are returned unchanged.
        """
        target = self._target() if fingerprint is not None else None
        if target is None or target[0] == fingerprint:
            return state
        if fingerprint != self._fingerprint:
            self._fingerprint, self._current, self._newest = fingerprint, None, None
            self._seen = StateReservoir(len(self._head.expression_names))
        now = time.monotonic_ns() if now_ns is None else now_ns
        newest = self._update(state, now)
        part = 1.0 - math.exp(-max(0, now - self._faded_ns) / (1e9 * EASE_S))
        self._current = newest if self._current is None else self._current.moved_towards(newest, part)
        self._faded_ns = now
        return ExpressionTransfer(self._current, target[1], self._head)(state)

    def preload(self, fingerprint: str, states: Iterable[HeadState]) -> None:
        """Collect ``states`` as initial statistics of the subject ``fingerprint``, before its first state is mapped."""
        self._fingerprint, self._current, self._newest = fingerprint, None, None
        self._seen = StateReservoir(len(self._head.expression_names))
        for state in states:
            self._seen.observe(state)

    def reset(self) -> None:
        """Discard the statistics of the source; they are estimated again from the next state on."""
        self._fingerprint = None

    def _update(self, state: HeadState, now: int) -> ExpressionStats:
        """Add ``state`` to the statistics of the source, if due, and return the newest statistics."""
        if self._newest is None or now - self._sampled_ns >= NOTE_NS:
            self._seen.observe(state)
            self._sampled_ns = now
        if self._newest is None or now - self._updated_ns >= UPDATE_NS:
            self._newest = ExpressionStats.of_states(self._seen, self._head)
            self._updated_ns = now
        return self._newest


def _gain(source: Float32, target: Float32, least: float) -> Float32:
    """Scale factor of deviations from neutral; 1 where a range is unknown or the source does not use the unit."""
    ratio = np.maximum(target, least) / np.maximum(source, least)
    usable = np.isfinite(ratio) & (np.nan_to_num(source) > least)
    return np.where(usable, ratio.clip(*GAIN), 1.0).astype(np.float32)


def _both_sides(gain: Float32, names: tuple[str, ...]) -> Float32:
    """Average the gains of the left and right unit of a pair: an asymmetry of the source is not transferred."""
    place = {name: i for i, name in enumerate(names)}
    even = gain.copy()
    for name, left in place.items():
        right = place.get(name.removesuffix("Left") + "Right") if name.endswith("Left") else None
        if right is not None:
            even[left] = even[right] = 0.5 * (gain[left] + gain[right])
    return even


def _nearest_rotation(matrix: Float64) -> Float64:
    """Rotation matrix nearest to a (3, 3) matrix."""
    u, _, v = np.linalg.svd(matrix)
    flip = np.diag([1.0, 1.0, float(np.sign(np.linalg.det(u @ v)))])
    return np.asarray(u @ flip @ v, dtype=np.float64)

"""Expression code: conditioning of the radiance field on expression and view, in addition to the motion of the mesh.

A code has three parts.  The mouth part and the eye part are in detail; at a sample each is multiplied by a smooth mask
of its region (`warp.CanonicalSamples.masks`), in training, occupancy and rendering alike.  The head part is
coarser and the same everywhere: wrinkles, brows, cheeks and hair change with the expression, shading with the view.

Codes are standardised by the subject's own mean and spread.  Codes outside the range seen in training (of an extreme
expression, or from another driver) are projected to the nearest code inside it: the mesh takes the new expression, with
the appearance of the nearest one known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np
import torch

from insta_runtime.config import AvatarConfig, ConditioningConfig
from insta_runtime.field.lip_code import LIPS_UNITS, LIPS_WIDTH, LipCode
from insta_runtime.field.state_reservoir import CAPACITY, StateReservoir
from insta_runtime.field.view_range import ViewRange, view_angles
from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, HeadState

EYE_UNITS: tuple[tuple[str, ...], ...] = (
    ("eyeBlinkLeft",),
    ("eyeBlinkRight",),
    ("eyeSquintLeft", "eyeSquintRight"),
    ("eyeWideLeft", "eyeWideRight"),
)
"""ARKit units of the eyes; the units of one group are averaged to one number of the code."""
HEAD_UNITS: tuple[tuple[str, ...], ...] = (
    ("browInnerUp",),
    ("browDownLeft", "browDownRight"),
    ("browOuterUpLeft", "browOuterUpRight"),
    ("mouthSmileLeft",),
    ("mouthSmileRight",),
    ("jawOpen",),
    ("cheekSquintLeft", "cheekSquintRight", "noseSneerLeft", "noseSneerRight"),
    ("mouthPucker", "mouthFunnel"),
    ("eyeBlinkLeft", "eyeBlinkRight"),
    ("eyeSquintLeft", "eyeSquintRight"),
    ("eyeWideLeft", "eyeWideRight"),
    ("mouthLeft",),
    ("mouthRight",),
    ("mouthShrugUpper", "mouthShrugLower"),
    ("cheekPuff",),
    ("jawForward",),
)
"""ARKit units of the head part; the units of one group are averaged to one number of the code."""
FLAME_COMPONENTS = 13
"""Number of FLAME expression components in the mouth code; with three jaw angles it has sixteen numbers."""
MOUTH_WIDTH = len(LIPS_UNITS)
"""Length of the mouth part."""
EYE_WIDTH = len(EYE_UNITS) + 2
"""Length of the eye part: `EYE_UNITS`, then the mean gaze rotation of both eyes about x and y."""
REGION_WIDTH = MOUTH_WIDTH + EYE_WIDTH
"""Length of the mouth part and the eye part together, which come first."""
HEAD_WIDTH = len(HEAD_UNITS) + 2
"""Length of the head part: `HEAD_UNITS`, then azimuth and elevation of the view."""
CODE_WIDTH = REGION_WIDTH + HEAD_WIDTH
"""Length of an expression code: mouth part, eye part, head part."""

PRIOR = 16
"""Number of frames at which the subject's own mean and spread count as much as the prior ones."""
PRIOR_SPREAD = 0.25
"""Prior standard deviation of the numbers of a code; the prior mean is zero."""
LEAST_SPREAD = 0.15
"""Minimum spread used for standardisation: smaller variation is mostly tracking noise."""
STANDARD_SPREAD = 0.25
"""Standard deviation of standardised codes: about that of raw codes."""
PULLED_FROM = 64
"""Number of training frames from which codes and view directions are clamped to the range seen in training."""
SLACK = 0.1, 0.5
"""Margins by which the range of codes is extended: a share of the range, plus a number of standard deviations."""


@dataclass(frozen=True)
class CodeRange:
    """Range of one subject's raw expression codes: mean, spread, and bounds along principal axes.

    Attributes:
        mean, spread: (CODE_WIDTH,) mean and standard deviation, for standardisation.
        axes: (CODE_WIDTH, CODE_WIDTH) principal axes of the codes divided by their spread, one per column.
        low, high: (CODE_WIDTH,) bounds along the axes, relative to the mean, with the margin `SLACK`.
    """

    mean: Float32
    spread: Float32
    axes: Float32
    low: Float32
    high: Float32

    @staticmethod
    def unbounded() -> CodeRange:
        """Range without bounds, with the prior mean and spread: used before any training frame."""
        numbers = np.ones(CODE_WIDTH, dtype=np.float32)
        endless = np.float32(np.inf) * numbers
        return CodeRange(0 * numbers, PRIOR_SPREAD * numbers, np.eye(CODE_WIDTH, dtype=np.float32), -endless, endless)

    @staticmethod
    def mean_and_spread(codes: Float32) -> tuple[Float32, Float32]:
        """Mean and standard deviation, (CODE_WIDTH,) each, of ``codes`` (N, CODE_WIDTH).

        They are blended with the prior (`PRIOR`, `PRIOR_SPREAD`), which matters while N is small.
        """
        if not len(codes):
            prior = np.ones(codes.shape[1], dtype=np.float32)
            return 0.0 * prior, PRIOR_SPREAD * prior
        share = len(codes) / (len(codes) + PRIOR)
        variance = share * codes.var(axis=0) + (1.0 - share) * PRIOR_SPREAD**2
        return share * codes.mean(axis=0), np.maximum(np.sqrt(variance), LEAST_SPREAD)

    @staticmethod
    def of(codes: Float32, mean: Float32, spread: Float32) -> CodeRange:
        """Range of raw ``codes`` (N, CODE_WIDTH) with the given mean and spread, (CODE_WIDTH,) each.

        It has no bounds if there are fewer codes than `PULLED_FROM`.
        """
        unbounded = CodeRange.unbounded()
        if len(codes) < PULLED_FROM:
            return CodeRange(mean, spread, unbounded.axes, unbounded.low, unbounded.high)
        relative = (codes - mean) / spread
        _, axes = np.linalg.eigh(np.cov(relative.T))
        axes = axes.astype(np.float32)
        along = relative @ axes
        low, high = along.min(axis=0), along.max(axis=0)
        slack = SLACK[0] * (high - low) + SLACK[1]
        return CodeRange(mean, spread, axes, low - slack, high + slack)

    def standardise(self, codes: Float32) -> Float32:
        """Standardise raw codes (..., CODE_WIDTH): zero mean and a standard deviation of `STANDARD_SPREAD`."""
        return ((codes - self.mean) * (STANDARD_SPREAD / self.spread)).astype(np.float32)

    def project(self, codes: Float32) -> Float32:
        """Clamp raw codes (..., CODE_WIDTH) to the bounds along the principal axes: the nearest codes in the range."""
        along = ((codes - self.mean) / self.spread) @ self.axes
        excess = along - along.clip(self.low, self.high)
        return codes - self.spread * (excess @ self.axes.T) if excess.any() else codes


class CodedModel(Protocol):
    """Protocol of models whose head and configuration determine their expression codes (`render.model.AvatarModel`)."""

    head: HeadModel
    config: AvatarConfig


class ExpressionCode:
    """Computes expression codes (CODE_WIDTH,) float32 of head states: mouth part, eye part, head part.

    `observe` is called by the training thread only; other threads may compute codes concurrently.

    Attributes:
        reservoir: sample of the head states of the training frames.
        range: range of their codes; replaced as a whole.
        views: range of their view directions; replaced as a whole.
    """

    part_name: ClassVar[str] = "expression"

    def __init__(self, head: HeadModel, config: ConditioningConfig | None = None) -> None:
        self.config = config or ConditioningConfig()
        self.reservoir = StateReservoir(len(head.expression_names))
        self.range, self.views = CodeRange.unbounded(), ViewRange.unbounded()
        self._codes = np.zeros((CAPACITY, CODE_WIDTH), dtype=np.float32)
        self._angles = np.zeros((CAPACITY, 2))
        self._lips = LipCode(head) if self.config.code == "lips" else None
        self._arkit = head.basis == "arkit52"
        if self._arkit:
            column = {name: i for i, name in enumerate(head.expression_names)}
            groups = LIPS_UNITS + EYE_UNITS + HEAD_UNITS
            self._matrix = np.zeros((len(groups), len(column)), dtype=np.float32)
            for row, group in enumerate(groups):
                for name in group:
                    self._matrix[row, column[name]] = 1.0 / len(group)

    def __call__(self, state: HeadState) -> Float32:
        """Expression code of ``state``: projected to the range seen in training and standardised, as configured."""
        raw = self.raw(state)
        return self.learned(self.range.project(raw) if self.config.pull_in else raw)

    def raw(self, state: HeadState) -> Float32:
        """Raw expression code (CODE_WIDTH,) of ``state``, independent of the subject's range."""
        regional = self.regional(state)
        if self._lips is not None or not self.config.head_part:
            return np.pad(regional, (0, HEAD_WIDTH))
        if self._arkit:
            units = self._matrix[-len(HEAD_UNITS) :] @ state.expression
        else:
            units = np.pad(state.expression, (0, len(HEAD_UNITS)))[: len(HEAD_UNITS)] / 2.0
        return np.concatenate([regional, units, view_angles(state) * 2.0]).astype(np.float32)

    def regional(self, state: HeadState) -> Float32:
        """Mouth and eye parts (REGION_WIDTH,) of the raw code of ``state``: by their distance expressions compare."""
        if self._lips is not None:
            return np.pad(self._lips(state), (0, REGION_WIDTH - LIPS_WIDTH))  # all kinds of code have the same length
        gaze = state.eye_pose.mean(axis=0)[:2] * 2.0
        if self._arkit:
            units = self._matrix[: -len(HEAD_UNITS)] @ state.expression
            lids = np.maximum(units[MOUTH_WIDTH : MOUTH_WIDTH + 2], state.eyelids)
            code = [units[:MOUTH_WIDTH], lids, units[MOUTH_WIDTH + 2 :], gaze]
        else:
            mouth = state.expression[:FLAME_COMPONENTS] / 2.0
            code = [
                mouth,
                state.jaw_pose * 4.0,
                state.eyelids,
                state.expression[FLAME_COMPONENTS : FLAME_COMPONENTS + 2] / 2.0,
                gaze,
            ]
        return np.concatenate(code).astype(np.float32)

    def learned(self, raw: Float32) -> Float32:
        """Codes for training from raw codes (..., CODE_WIDTH): standardised if so configured, but not projected."""
        return self.range.standardise(raw) if self.config.standardise else raw

    def turn(self, state: HeadState) -> Float32:
        """Rotation (3, 3) in head space that clamps the view direction of ``state`` to the range seen in training.

        It is the identity inside the range or if the configuration does not clamp views.
        """
        return self.views.turn(state) if self.config.pull_views else np.eye(3, dtype=np.float32)

    def observe(self, state: HeadState) -> bool:
        """Add the state of a training frame to the statistics of the subject.

        Returns True if mean or spread changed, so that the standardised codes of earlier frames must be recomputed.
        """
        place = self.reservoir.observe(state)
        if place is None:
            return False
        self._store(place, state)
        # In a long call the sample fluctuates; mean and spread stay fixed, because the field was trained with them.
        young = self.reservoir.count <= CAPACITY
        codes = self._codes[: len(self.reservoir)]
        mean, spread = CodeRange.mean_and_spread(codes) if young else (self.range.mean, self.range.spread)
        self.range = CodeRange.of(codes, mean, spread)
        self.views = self._seen_views()
        return young and self.config.standardise

    def _store(self, place: int, state: HeadState) -> None:
        self._codes[place], self._angles[place] = self.raw(state), view_angles(state)

    def _seen_views(self) -> ViewRange:
        known = len(self.reservoir)
        return ViewRange.of(self._angles[:known]) if known >= PULLED_FROM else ViewRange.unbounded()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors for the avatar file: those of the reservoir, and ``mean`` and ``spread`` (CODE_WIDTH,)."""
        scale = {"mean": torch.from_numpy(self.range.mean), "spread": torch.from_numpy(self.range.spread)}
        return self.reservoir.tensors() | scale

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], model: CodedModel) -> Self:
        """Restore an expression code from the tensors that `tensors` returned, for head and configuration of ``model``.

        Raises KeyError or ValueError if they are incomplete or invalid.
        """
        code = cls(model.head, model.config.conditioning)
        if set(tensors) != {"states", "count", "mean", "spread"}:
            raise ValueError("its expression statistics are incomplete")
        code.reservoir = StateReservoir.from_tensors(tensors, code.reservoir.expressions)
        mean, spread = tensors["mean"].numpy().copy(), tensors["spread"].numpy().copy()
        for place in range(len(code.reservoir)):
            code._store(place, code.reservoir.state(place))
        codes = code._codes[: len(code.reservoir)]
        if mean.shape == spread.shape == (REGION_WIDTH,):  # saved before codes had a head part
            head_mean, head_spread = CodeRange.mean_and_spread(codes[:, REGION_WIDTH:])
            mean, spread = np.concatenate([mean, head_mean]), np.concatenate([spread, head_spread])
        if not (mean.shape == spread.shape == (CODE_WIDTH,) and (spread >= 0.99 * LEAST_SPREAD).all()):
            raise ValueError("its mean or spread of expression codes is invalid")
        code.range = CodeRange.of(codes, mean, spread)
        code.views = code._seen_views()
        return code


def condition(codes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Multiply mouth and eye part of expression codes (N, CODE_WIDTH) by the ``masks`` (N, 2) of mouth and eyes.

    Returns the conditioning input of the radiance field, (N, CODE_WIDTH).
    """
    mouth, eyes, head = codes.split([MOUTH_WIDTH, EYE_WIDTH, HEAD_WIDTH], dim=-1)
    return torch.cat([mouth * masks[:, :1], eyes * masks[:, 1:], head], dim=-1)

"""The expression code: what the field is told about mouth and eyes beyond what the mesh already does.

A code has a mouth part and an eye part; a sample sees each multiplied by a smooth mask around that region and zero
elsewhere (`warp.CanonicalSamples.masks`), in training, occupancy and display alike.

What the field gets is the code in units of the person's own range.  A code that was never seen, of an extreme or
foreign expression, is pulled in to what was: the mesh moves as it is told, and looks like the nearest that was learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np
import torch

from insta_runtime.config import AvatarConfig, ConditioningConfig
from insta_runtime.field.expression_stats import CAPACITY, Repertoire
from insta_runtime.field.lip_code import LIPS_UNITS, LIPS_WIDTH, LipsNumbers
from insta_runtime.field.view_range import ViewRange, view_angles
from insta_runtime.head import HeadModel
from insta_runtime.types import Float32, HeadState

EYE_UNITS: tuple[tuple[str, ...], ...] = (
    ("eyeBlinkLeft",),
    ("eyeBlinkRight",),
    ("eyeSquintLeft", "eyeSquintRight"),
    ("eyeWideLeft", "eyeWideRight"),
)
FLAME_COMPONENTS = 13  # with the jaw's three angles they make the sixteen numbers of the mouth's code
MOUTH_WIDTH = len(LIPS_UNITS)
EYE_WIDTH = len(EYE_UNITS) + 2
CODE_WIDTH = MOUTH_WIDTH + EYE_WIDTH


PRIOR = 16  # pictures that it takes to make somebody's range count as much as the usual one:
PRIOR_SPREAD = 0.25  # standard deviation of a code's numbers, and its mean is zero
LEAST_SPREAD = 0.15  # what varies less is not made more of: much of it is noise of the tracker
STANDARD_SPREAD = 0.25  # of standardised codes: what raw ones have, so that nothing else changes with the switch
PULLED_FROM = 64  # pictures: before, too little was seen to pull anything in
SLACK = 0.1, 0.5  # how far beyond what was seen a code may go: of the range, and in standard deviations


@dataclass(frozen=True)
class CodeRange:
    """Where one person's codes lie, in raw numbers.

    Attributes:
        mean, spread: (CODE_WIDTH,).
        axes: (CODE_WIDTH, CODE_WIDTH) principal axes of the codes divided by their spread, one a column.
        low, high: (CODE_WIDTH,) what was seen along them, relative to the mean, and some slack.
    """

    mean: Float32
    spread: Float32
    axes: Float32
    low: Float32
    high: Float32

    @staticmethod
    def unknown() -> CodeRange:
        """Of somebody of whom nothing was seen: nothing is pulled in, and nothing subtracted."""
        numbers = np.ones(CODE_WIDTH, dtype=np.float32)
        endless = np.float32(np.inf) * numbers
        return CodeRange(0 * numbers, PRIOR_SPREAD * numbers, np.eye(CODE_WIDTH, dtype=np.float32), -endless, endless)

    @staticmethod
    def usual(codes: Float32) -> tuple[Float32, Float32]:
        """Mean and spread of ``codes`` (N, CODE_WIDTH), cautious while they are few."""
        share = len(codes) / (len(codes) + PRIOR)
        variance = share * codes.var(axis=0) + (1.0 - share) * PRIOR_SPREAD**2
        return share * codes.mean(axis=0), np.maximum(np.sqrt(variance), LEAST_SPREAD)

    @staticmethod
    def of(codes: Float32, mean: Float32, spread: Float32) -> CodeRange:
        """The range of ``codes`` (N, CODE_WIDTH) around ``mean``, in units of ``spread``."""
        unknown = CodeRange.unknown()
        if len(codes) < PULLED_FROM:
            return CodeRange(mean, spread, unknown.axes, unknown.low, unknown.high)
        relative = (codes - mean) / spread
        _, axes = np.linalg.eigh(np.cov(relative.T))
        axes = axes.astype(np.float32)
        along = relative @ axes
        low, high = along.min(axis=0), along.max(axis=0)
        slack = SLACK[0] * (high - low) + SLACK[1]
        return CodeRange(mean, spread, axes, low - slack, high + slack)

    def standardise(self, codes: Float32) -> Float32:
        """Raw codes (..., CODE_WIDTH) in units of the range."""
        return ((codes - self.mean) * (STANDARD_SPREAD / self.spread)).astype(np.float32)

    def pull_in(self, codes: Float32) -> Float32:
        """The nearest raw codes within the range: a projection on a box, so that what moves smoothly still does."""
        along = ((codes - self.mean) / self.spread) @ self.axes
        excess = along - along.clip(self.low, self.high)
        return codes - self.spread * (excess @ self.axes.T) if excess.any() else codes


class Person(Protocol):
    """What of an avatar's model (`render.model.AvatarModel`) decides how its codes are made."""

    head: HeadModel
    config: AvatarConfig


class ExpressionCode:
    """Turns head states into codes: (CODE_WIDTH,) float32, mouth first, about one in size.

    Belongs to the thread that learns; another may ask for codes meanwhile.

    Attributes:
        repertoire: the states that were learned from.
        range: of their codes; views: of where they were seen from; both are replaced whole.
    """

    part_name: ClassVar[str] = "expression"

    def __init__(self, head: HeadModel, config: ConditioningConfig | None = None) -> None:
        self.config = config or ConditioningConfig()
        self.repertoire = Repertoire(len(head.expression_names))
        self.range, self.views = CodeRange.unknown(), ViewRange.unknown()
        self._codes = np.zeros((CAPACITY, CODE_WIDTH), dtype=np.float32)
        self._angles = np.zeros((CAPACITY, 2))
        self._lips = LipsNumbers(head) if self.config.code == "lips" else None
        self._arkit = head.basis == "arkit52"
        if self._arkit:
            column = {name: i for i, name in enumerate(head.expression_names)}
            groups = LIPS_UNITS + EYE_UNITS
            self._matrix = np.zeros((len(groups), len(column)), dtype=np.float32)
            for row, group in enumerate(groups):
                for name in group:
                    self._matrix[row, column[name]] = 1.0 / len(group)

    def __call__(self, state: HeadState) -> Float32:
        """What the field is told of ``state``."""
        raw = self.raw(state)
        return self.learned(self.range.pull_in(raw) if self.config.pull_in else raw)

    def raw(self, state: HeadState) -> Float32:
        """The code of ``state`` before the person's range comes in."""
        if self._lips is not None:
            return np.pad(self._lips(state), (0, CODE_WIDTH - LIPS_WIDTH))  # one layout of states serves both
        gaze = state.eye_pose.mean(axis=0)[:2] * 2.0
        if self._arkit:
            units = self._matrix @ state.expression
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
        """Raw codes (..., CODE_WIDTH) that were seen, as the field is told them: in range, they need no pulling in."""
        return self.range.standardise(raw) if self.config.standardise else raw

    def turn(self, state: HeadState) -> Float32:
        """How rays are turned, (3, 3) in head space, before the field is asked for colours along them."""
        return self.views.turn(state) if self.config.pull_views else np.eye(3, dtype=np.float32)

    def observe(self, state: HeadState) -> bool:
        """Take note of a state that is learned from: True if the codes of all earlier ones have changed."""
        place = self.repertoire.observe(state)
        if place is None:
            return False
        self._note(place, state)
        # A fair sample of a long call wavers; what the field has grown used to had better not.
        young = self.repertoire.count <= CAPACITY
        codes = self._codes[: len(self.repertoire)]
        mean, spread = CodeRange.usual(codes) if young else (self.range.mean, self.range.spread)
        self.range = CodeRange.of(codes, mean, spread)
        self.views = self._seen_views()
        return young and self.config.standardise

    def _note(self, place: int, state: HeadState) -> None:
        self._codes[place], self._angles[place] = self.raw(state), view_angles(state)

    def _seen_views(self) -> ViewRange:
        known = len(self.repertoire)
        return ViewRange.of(self._angles[:known]) if known >= PULLED_FROM else ViewRange.unknown()

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a file: those of the repertoire, and ``mean`` and ``spread`` (CODE_WIDTH,) of the codes."""
        scale = {"mean": torch.from_numpy(self.range.mean), "spread": torch.from_numpy(self.range.spread)}
        return self.repertoire.tensors() | scale

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], model: Person) -> Self:
        """What `tensors` gave, for the head of ``model``.  KeyError or ValueError if there can be none like it."""
        code = cls(model.head, model.config.conditioning)
        if set(tensors) != {"states", "count", "mean", "spread"}:
            raise ValueError("its range of expressions is not whole")
        code.repertoire = Repertoire.from_tensors(tensors, code.repertoire.expressions)
        mean, spread = tensors["mean"].numpy().copy(), tensors["spread"].numpy().copy()
        if not (mean.shape == spread.shape == (CODE_WIDTH,) and (spread >= 0.99 * LEAST_SPREAD).all()):
            raise ValueError("its range of expressions is none")
        for place in range(len(code.repertoire)):
            code._note(place, code.repertoire.state(place))
        code.range = CodeRange.of(code._codes[: len(code.repertoire)], mean, spread)
        code.views = code._seen_views()
        return code


def condition(codes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Fade codes (N, CODE_WIDTH) by the masks (N, 2) of mouth and eyes: (N, CODE_WIDTH)."""
    mouth, eyes = codes.split([MOUTH_WIDTH, EYE_WIDTH], dim=-1)
    return torch.cat([mouth * masks[:, :1], eyes * masks[:, 1:]], dim=-1)

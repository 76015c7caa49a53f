"""What a face does that nobody moves: it breathes, sways a little, blinks, and looks about."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Float32, HeadState

BREATH_S: Final = 4.3
"""A calm breath."""
RISE_M: Final = 0.0012
"""How far the head rises with it ..."""
NOD_RAD: Final = 0.006
"""... and how far it tilts back."""
SWAY: Final = ((0.014, 11.3, 0.4), (0.009, 17.9, 1.9), (0.006, 7.1, 3.1))
"""Turns of the head about x, y, z: amplitude (rad), period (s), phase."""
BLINKS_S: Final = (2.2, 6.5)
"""Seconds from one blink to the next, evenly spread."""
SHUT_S: Final = 0.09
HELD_S: Final = 0.04
OPEN_S: Final = 0.17
"""A lid falls fast, stays a moment, and rises more slowly."""
LOOKS_S: Final = (1.2, 4.0)
LOOK_RAD: Final = 0.035
"""Eyes rest on a point so long; points lie so far apart (standard deviation)."""
DART_S: Final = 0.045

_LIDS: Final = ("eyeBlinkLeft", "eyeBlinkRight")


class Idle:
    """Idle motion of a head with expression units ``names`` and this ``basis``; the same for the same ``seed``."""

    def __init__(self, basis: str, names: tuple[str, ...], seed: int = 1) -> None:
        self._units = [names.index(name) for name in _LIDS if basis == "arkit52" and name in names]
        self._chance = [np.random.default_rng((seed, part)) for part in range(2)]
        self._blinks = [1.0]  # seconds at which lids begin to fall: the newest, and the next
        self._looks: list[tuple[float, Float32]] = [(0.0, np.zeros(2, np.float32))]  # since when, and where: likewise

    def state(self, neutral: HeadState, seconds: float) -> HeadState:
        """What ``neutral`` does ``seconds`` after it was left to itself, which grow from call to call."""
        parts = neutral.arrays()
        breath = math.sin(2.0 * math.pi * seconds / BREATH_S)
        turn = [angle * math.sin(2.0 * math.pi * seconds / period + phase) for angle, period, phase in SWAY]
        turn[0] -= NOD_RAD * breath
        gentle = smoothstep(seconds / 2.0)  # from rest
        parts["rotation"] = axis_angle(
            rotation_matrix(neutral.rotation) @ rotation_matrix(gentle * np.array(turn))
        ).astype(np.float32)
        parts["translation"] = neutral.translation - np.array([0.0, gentle * RISE_M * breath, 0.0], np.float32)
        parts["eye_pose"] = neutral.eye_pose + np.array([*self._look(seconds), 0.0], np.float32)
        closed = np.float32(self._closed(seconds))
        if self._units:
            expression = neutral.expression.copy()
            expression[self._units] += closed * (1.0 - expression[self._units])
            parts["expression"] = expression
        else:
            parts["eyelids"] = neutral.eyelids + closed * (1.0 - neutral.eyelids)
        return HeadState(**parts, t_capture_ns=neutral.t_capture_ns)

    def _closed(self, seconds: float) -> float:
        """How far the lids are closed, 0 to 1."""
        while self._blinks[-1] <= seconds:
            self._blinks = [self._blinks[-1], self._blinks[-1] + float(self._chance[0].uniform(*BLINKS_S))]
        since = seconds - self._blinks[0]
        return smoothstep(since / SHUT_S) - smoothstep((since - SHUT_S - HELD_S) / OPEN_S)

    def _look(self, seconds: float) -> Float32:
        """(2,) rad: turns of the eyes about x and y."""
        while self._looks[-1][0] <= seconds:
            at = self._looks[-1][0] + float(self._chance[1].uniform(*LOOKS_S))
            self._looks = [*self._looks[-2:], (at, self._chance[1].normal(0.0, LOOK_RAD, 2).astype(np.float32))]
        (_, before), (at, goal) = self._looks[0], self._looks[-2]
        return np.asarray(before + np.float32(smoothstep((seconds - at) / DART_S)) * (goal - before), dtype=np.float32)

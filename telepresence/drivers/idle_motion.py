"""Idle motion of a face without a driver: breathing, slight head sway, blinks, and eye movements."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Float32, HeadState

BREATH_S: Final = 4.3
"""Period of breathing in seconds."""
RISE_M: Final = 0.0012
"""Amplitude of the head's vertical motion with breathing, in metres."""
NOD_RAD: Final = 0.006
"""Amplitude of the head's pitch with breathing, in radians."""
SWAY: Final = ((0.014, 11.3, 0.4), (0.009, 17.9, 1.9), (0.006, 7.1, 3.1))
"""Head sway about x, y and z: amplitude (rad), period (s) and phase (rad)."""
BLINKS_S: Final = (2.2, 6.5)
"""Range of the interval between two blinks, in seconds, uniformly distributed."""
SHUT_S: Final = 0.09
"""Time in which an eyelid closes, in seconds."""
HELD_S: Final = 0.04
"""Time for which an eyelid stays closed, in seconds."""
OPEN_S: Final = 0.17
"""Time in which an eyelid opens, in seconds."""
LOOKS_S: Final = (1.2, 4.0)
"""Range of the duration of a fixation, in seconds, uniformly distributed."""
LOOK_RAD: Final = 0.035
"""Standard deviation, about each axis, of the gaze direction of a fixation, in radians."""
DART_S: Final = 0.045
"""Duration of a saccade, in seconds."""

_LIDS: Final = ("eyeBlinkLeft", "eyeBlinkRight")


class IdleMotion:
    """Procedural idle motion of a head; deterministic for a given ``seed``.

    Args:
        basis: expression basis of the head model (``arkit52`` or ``flame``).
        names: names of the head model's expression units.
        seed: seed of the random times of blinks, and of the random fixations.
    """

    def __init__(self, basis: str, names: tuple[str, ...], seed: int = 1) -> None:
        self._units = [names.index(name) for name in _LIDS if basis == "arkit52" and name in names]
        self._random = [np.random.default_rng((seed, part)) for part in range(2)]  # for blinks, for fixations
        self._blinks = [1.0]  # start times, in seconds, of the current and the next blink
        self._looks: list[tuple[float, Float32]] = [(0.0, np.zeros(2, np.float32))]  # fixations: start time, gaze

    def state(self, neutral: HeadState, seconds: float) -> HeadState:
        """Head state with idle motion added to ``neutral``, ``seconds`` after the motion began.

        ``seconds`` must not decrease from one call to the next.
        """
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
        """Closure of the eyelids, in [0, 1]."""
        while self._blinks[-1] <= seconds:
            self._blinks = [self._blinks[-1], self._blinks[-1] + float(self._random[0].uniform(*BLINKS_S))]
        since = seconds - self._blinks[0]
        return smoothstep(since / SHUT_S) - smoothstep((since - SHUT_S - HELD_S) / OPEN_S)

    def _look(self, seconds: float) -> Float32:
        """Rotation (2,) of the eyes about x and y, in radians."""
        while self._looks[-1][0] <= seconds:
            at = self._looks[-1][0] + float(self._random[1].uniform(*LOOKS_S))
            self._looks = [*self._looks[-2:], (at, self._random[1].normal(0.0, LOOK_RAD, 2).astype(np.float32))]
        (_, before), (at, goal) = self._looks[0], self._looks[-2]
        return np.asarray(before + np.float32(smoothstep((seconds - at) / DART_S)) * (goal - before), dtype=np.float32)

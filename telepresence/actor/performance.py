"""Seeded performance of the synthetic actor: head states as a pure, periodic function of time.

The performance is a person talking to a camera: sentences of visemes with pauses, blinks, glances, raised brows,
smiles, turns and nods.  It is a sum of pulses and sine waves with the period `PERIOD`, so any time can be evaluated in
any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from insta_runtime.geometry import axis_angle
from insta_runtime.smoothstep import smoothstep
from insta_runtime.types import Float64, HeadState

PERIOD = 24.0
"""Seconds after which the performance repeats."""

DISTANCE = 0.53
"""Metres between the camera and the head joint, on average."""

_VISEMES: tuple[Mapping[str, float], ...] = (
    {"jawOpen": 0.50, "mouthLowerDown": 0.25, "mouthUpperUp": 0.15},  # ah
    {"jawOpen": 0.34, "mouthStretch": 0.25, "mouthSmile": 0.15, "mouthUpperUp": 0.15, "mouthLowerDown": 0.30},  # eh
    {"jawOpen": 0.14, "mouthSmile": 0.38, "mouthStretch": 0.25, "mouthLowerDown": 0.30, "mouthUpperUp": 0.20},  # ee
    {"jawOpen": 0.30, "mouthFunnel": 0.55},  # oh
    {"jawOpen": 0.12, "mouthPucker": 0.70, "mouthFunnel": 0.20},  # oo
    {
        "jawOpen": 0.02,
        "mouthPress": 0.45,
        "mouthClose": 0.03,
        "mouthRollLower": 0.25,
        "mouthRollUpper": 0.20,
    },  # m, b, p
    {"jawOpen": 0.08, "mouthRollLower": 0.45, "mouthUpperUp": 0.30, "mouthShrugUpper": 0.10},  # f, v
    {"jawOpen": 0.12, "mouthLowerDown": 0.35, "mouthUpperUp": 0.12, "mouthStretch": 0.12},  # s, t, d, n
    {"jawOpen": 0.20, "mouthFunnel": 0.30, "mouthLowerDown": 0.20},  # sh, r
    {"jawOpen": 0.26, "mouthUpperUp": 0.10, "mouthLowerDown": 0.20},  # l, th
)
"""Mouth shapes of speech as weights of face units; a name without Left or Right stands for both sides."""


class Performance:
    """Performance of `PERIOD` seconds for a head model with ARKit face units; equal seeds give equal performances."""

    def __init__(self, expression_names: Sequence[str], seed: int = 0) -> None:
        """``expression_names``: names of the head model's E expression units, in order."""
        self._names = tuple(expression_names)
        self._index = {name: i for i, name in enumerate(self._names)}
        random = np.random.default_rng(seed)
        self._rest = self._weights({"mouthSmile": 0.12, "eyeWide": 0.25})
        self._visemes = self._speech(random)
        self._gestures = self._plan_gestures(random)
        self._blinks = _spread(random, 2.2, 4.8)
        self._glances = self._plan_glances(random)
        self._phases = random.uniform(0.0, 2.0 * np.pi, size=(6, 4))

    def __call__(self, seconds: float) -> HeadState:
        """The head state at ``seconds``, which is also its capture time; any number."""
        expression = np.zeros(len(self._names))
        expression += self._rest
        for event_times, width, weights in (self._visemes, self._gestures):
            strength = _bump(_circular(seconds - event_times), width)
            expression += strength @ weights
        gaze = self._gaze(seconds)
        blink = _blink(_circular(seconds - self._blinks)).max()
        # The lids follow the gaze; a blink overrides that.
        for side, inward in (("Left", -1.0), ("Right", 1.0)):
            self._add(expression, f"eyeLookDown{side}", max(gaze[0], 0.0) / 0.45)
            self._add(expression, f"eyeLookUp{side}", max(-gaze[0], 0.0) / 0.45)
            self._add(expression, f"eyeLookOut{side}", max(-gaze[1] * inward, 0.0) / 0.60)
            self._add(expression, f"eyeLookIn{side}", max(gaze[1] * inward, 0.0) / 0.60)
            lid = self._index[f"eyeBlink{side}"]
            expression[lid] = max(expression[lid], blink)
        rotation, translation = self._head(seconds)
        return HeadState(
            expression=np.clip(expression, 0.0, 1.0).astype(np.float32),
            eye_pose=np.tile(np.array([gaze[0], gaze[1], 0.0], dtype=np.float32), (2, 1)),
            rotation=rotation,
            translation=translation,
            t_capture_ns=round(seconds * 1e9),
        )

    def _add(self, expression: Float64, name: str, weight: float) -> None:
        """Add ``weight`` to a face unit, or to its left and right variants."""
        for unit in (name,) if name in self._index else (f"{name}Left", f"{name}Right"):
            expression[self._index[unit]] += weight

    def _weights(self, shape: Mapping[str, float]) -> Float64:
        expression = np.zeros(len(self._names))
        for name, weight in shape.items():
            self._add(expression, name, weight)
        return expression

    def _speech(self, random: np.random.Generator) -> tuple[Float64, Float64, Float64]:
        """Times (N,), half widths (N,) in seconds, and weights (N, E) of the visemes.

        Neighbouring visemes overlap by half, which imitates co-articulation.
        """
        times, widths, shapes = [], [], []
        now = 0.8
        while now < PERIOD - 2.6:
            end = min(now + random.uniform(2.0, 4.0), PERIOD - 0.8)
            while now < end:
                length = random.uniform(0.10, 0.19)
                loudness = random.uniform(0.7, 1.25)
                times.append(now)
                widths.append(length * 1.25)
                shapes.append(loudness * self._weights(_VISEMES[random.integers(len(_VISEMES))]))
                now += length
            now += random.uniform(0.7, 1.6)
        return np.array(times), np.array(widths), np.array(shapes)

    def _plan_gestures(self, random: np.random.Generator) -> tuple[Float64, Float64, Float64]:
        """Times (N,), half widths (N,) in seconds, and weights (N, E) of smiles, raised brows and other gestures."""
        smile = {
            "mouthSmile": 0.70,
            "cheekSquint": 0.55,
            "eyeSquint": 0.25,
            "mouthUpperUp": 0.80,
            "mouthLowerDown": 0.40,
        }
        plan: list[tuple[float, float, Mapping[str, float]]] = [
            (1.2, 1.4, smile),
            (9.0, 1.2, {"mouthSmile": 0.45, "cheekSquint": 0.30}),
            (16.8, 1.5, {**smile, "jawOpen": 0.15}),
            (22.6, 1.2, {"mouthSmile": 0.35, "mouthDimple": 0.3}),
            (6.6, 0.8, {"jawOpen": 0.40, "mouthFunnel": 0.25, "browInnerUp": 0.6, "browOuterUp": 0.6, "eyeWide": 0.5}),
            (12.2, 0.9, {"browDown": 0.7, "eyeSquint": 0.3, "noseSneer": 0.2, "mouthFrown": 0.2}),
            (19.9, 0.7, {"mouthPucker": 0.6, "browOuterUpLeft": 0.5}),
        ]
        plan += [
            (
                time,
                random.uniform(0.35, 0.8),
                {"browInnerUp": random.uniform(0.2, 0.7), "browOuterUp": random.uniform(0.1, 0.6)},
            )
            for time in _spread(random, 2.0, 4.5)
        ]
        times, widths, shapes = zip(*plan, strict=True)
        return np.array(times), np.array(widths), np.array([self._weights(shape) for shape in shapes])

    def _plan_glances(self, random: np.random.Generator) -> tuple[Float64, Float64]:
        """Times (N,) of the saccades, and the gaze (N, 2) after each: (pitch, yaw) in radians."""
        times = _spread(random, 0.8, 2.4)
        targets = random.normal(0.0, (0.07, 0.17), size=(len(times), 2)).clip((-0.16, -0.38), (0.20, 0.38))
        targets[random.random(len(times)) < 0.45] = 0.0  # mostly into the camera
        return times, targets

    def _gaze(self, seconds: float) -> Float64:
        """Gaze in radians: (pitch down, yaw to the subject's left), with saccades of 50 ms between fixations."""
        times, targets = self._glances
        since = (seconds - times) % PERIOD
        newest = int(np.argmin(since))
        progress = smoothstep(since[newest] / 0.05)
        gaze: Float64 = targets[newest - 1] + progress * (targets[newest] - targets[newest - 1])
        # The eyes compensate 40 % of the head's rotation, towards the camera.
        pitch, yaw, _ = self._angles(seconds)
        return gaze + 0.4 * np.array([-pitch, -yaw])

    def _wave(self, row: int, harmonics: Sequence[int], seconds: float) -> float:
        """Sum of sine waves in about [-1, 1], with the period `PERIOD`."""
        angles = 2.0 * np.pi * np.array(harmonics) * seconds / PERIOD + self._phases[row, : len(harmonics)]
        weights = 1.0 / np.arange(1, len(harmonics) + 1)
        return float(np.sin(angles) @ weights / weights.sum() * 1.25)

    def _angles(self, seconds: float) -> tuple[float, float, float]:
        """Pitch (down), yaw (to the subject's left) and roll of the head in radians."""
        pitch = np.radians(11.0) * self._wave(0, (3, 5, 10, 17), seconds)
        yaw = np.radians(24.0) * self._wave(1, (2, 3, 7, 11), seconds)
        roll = np.radians(5.5) * self._wave(2, (1, 4, 6), seconds)
        return pitch, yaw, roll

    def _head(self, seconds: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Rotation (3,) as axis-angle and translation (3,) in metres, head to camera."""
        pitch, yaw, roll = self._angles(seconds)
        turn = _about(1, yaw) @ _about(0, pitch) @ _about(2, roll)
        rotation = axis_angle(np.diag([1.0, -1.0, -1.0]) @ turn)
        if rotation[0] < 0.0:
            # Facing the camera is half a turn about x, where the axis-angle vector would jump: use an angle above pi.
            rotation *= 1.0 - 2.0 * np.pi / np.linalg.norm(rotation)
        sway = [self._wave(row, (1, 2, 5), seconds) for row in (3, 4, 5)]
        translation = np.array([0.0, 0.022, DISTANCE]) + np.array([0.018, 0.008, 0.025]) * sway
        return rotation.astype(np.float32), translation.astype(np.float32)


def _about(axis: int, angle: float) -> Float64:
    """Rotation matrix by ``angle`` (radians) about axis 0, 1 or 2."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def _circular(offset: Float64) -> Float64:
    """Wrap time offsets into [-PERIOD/2, PERIOD/2)."""
    return (offset + PERIOD / 2) % PERIOD - PERIOD / 2


def _bump(offset: Float64, width: Float64) -> Float64:
    """Raised cosine of half width ``width``: 1 at offset 0, falling smoothly to 0 at +-width."""
    bump: Float64 = 0.5 + 0.5 * np.cos(np.pi * np.clip(np.abs(offset) / width, 0.0, 1.0))
    return bump


def _blink(offset: Float64) -> Float64:
    """Closing of the lids (0 to 1) ``offset`` seconds after the start of a blink: 80 ms down, 60 ms shut, 160 ms up."""
    down = np.clip(offset / 0.08, 0.0, 1.0)
    up = np.clip((offset - 0.14) / 0.16, 0.0, 1.0)
    return smoothstep(down - up)


def _spread(random: np.random.Generator, shortest: float, longest: float) -> Float64:
    """Random event times over one `PERIOD`, with gaps between ``shortest`` and ``longest`` seconds."""
    gaps = random.uniform(shortest, longest, size=int(PERIOD / shortest) + 1)
    count = max(1, int(np.searchsorted(gaps.cumsum(), PERIOD)))
    times: Float64 = gaps[:count].cumsum()
    return times * (PERIOD / times[-1]) * (1.0 - 1e-9)

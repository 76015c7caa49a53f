"""What is worth learning from: each tracked picture is looked at, and refused for a reason that is counted.

What is bad is told by comparison with what this person, camera and light usually give: where everything is blurred,
nothing is.  And no reason but a lost face keeps for ever: who sits still, or in bad light, is learned at a low rate.
Looking takes about a millisecond of one core.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from insta_runtime.field.view_range import view_angles
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Bytes, Camera, Float32, Float64, HeadState, Observation

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

Mask = NDArray[np.bool_]
Reason = Literal["mistracked", "cut off", "occluded", "vague matte", "moving", "blurred", "duplicate"]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

PATIENCE: Final[dict[Reason, float]] = {
    "mistracked": math.inf,
    "cut off": math.inf,
    "occluded": 5.0,
    "vague matte": 4.0,
    "moving": 2.0,
    "blurred": 2.0,
    "duplicate": 1.0,
}
"""Seconds since a picture was last taken, after which one is in spite of the reason."""

GAP_S: Final = 1.0
"""Who was away for longer than this is not waited for: patience begins anew."""
POINTS: Final = 160
"""Places of the face that are looked at."""
FACING: Final = 0.35
"""Cosine between a place's normal and the way to the camera from which on it is in view."""
LEAST_INSIDE: Final = 0.75
"""Part of the face that the picture must show."""
JUMP, JUMP_RATE = math.radians(25.0), math.radians(500.0)
"""No head turns by so much from a frame to the next, nor so much a second."""
FRAME_S: Final = 0.25
"""Pictures farther apart than that say nothing of speed."""
FASTEST: Final = 1.2
"""Widths of the face a second beyond which matte and pose lag behind the picture."""
WIDTH: Final = 96
"""Sharpness is that of a face scaled to so many pixels across, about."""
LEAST_SHARP: Final = 0.45
"""Part of the usual best sharpness below which a face is blurred."""
WINDOW: Final = 64
"""Pictures that say what is usual: half a minute at most, for they are looked at twice a second or oftener."""
YOUNG: Final = 40
"""Pictures taken before which duplicates are welcome: with little else there is, they still tell noise from face."""
KNOWN: Final = 8
"""Pictures before which nothing is called usual."""
MATTE_SIDE: Final = 128
"""The matte is looked at with about so many pixels a side."""
VAGUE: Final = 0.06
"""Part of the head, beyond the usual, that may be half transparent without being at an edge."""
HIDDEN: Final = 0.08
"""Part of the face, beyond the usual, that the matte may lack."""
STRANGE: Final = 0.12
"""Part of the face, beyond the usual, whose colours may be others than before."""
SIDE: Final = math.radians(12.0)
"""Colours are compared with those of views that are less than this apart, about."""
OTHER_COLOUR: Final = 0.16
"""Difference from the usual colour, a part of the face's brightness, that makes a place strange ..."""
OTHER_THAN_USUAL: Final = 3.0
"""... and times the place's own usual difference."""
COLOUR_RATE: Final = 0.2
"""How fast usual colours follow the pictures that are taken."""
SAME: Final = 0.015, 0.003, 0.08
"""Radians, metres and expression code that two states may differ by and be the same."""
COMPARED: Final = 8
"""Newest pictures taken that a new one may be a duplicate of."""


@dataclass(frozen=True)
class FacePoints:
    """Places of the face in head space, metres.

    Attributes:
        points, normals: (N, 3) of the neutral face, normals of length one. moves: (E, 3 N) what expressions add.
            (What a jaw's joint adds is left out.)
    """

    points: Float64
    normals: Float64
    moves: Float64

    @staticmethod
    def of(model: AvatarModel) -> FacePoints:
        """Evenly over the face of this person."""
        mesh = model.rig.canonical(model.shape, 0.0)
        vertices, faces = mesh.vertices.cpu().numpy().astype(np.float64), mesh.faces.cpu().numpy()
        corners = vertices[faces]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals = np.zeros_like(vertices)
        for corner in range(3):
            np.add.at(normals, faces[:, corner], across)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
        face = np.flatnonzero((model.head.masks["face"] > 0.5) & (normals[:, 2] > 0.0))
        chosen = [int(face[0])]
        away = np.full(len(face), np.inf)
        while len(chosen) < min(POINTS, len(face)):  # the one that is farthest from all chosen ones
            away = np.minimum(away, np.linalg.norm(vertices[face] - vertices[chosen[-1]], axis=1))
            chosen.append(int(face[away.argmax()]))
        moves = model.head.expression_dirs[:, chosen].reshape(-1, 3 * len(chosen))
        return FacePoints(vertices[chosen], normals[chosen], moves.astype(np.float64))


@dataclass(frozen=True)
class FaceProjection:
    """Where a state puts the places of a face: ``u``, ``v`` (N,) pixels; ``facing`` and ``inside`` (N,) bool."""

    u: Float64
    v: Float64
    facing: Mask
    inside: Mask

    @staticmethod
    def of(face: FacePoints, state: HeadState, camera: Camera) -> FaceProjection | None:
        """None for a state that is none: not finite, or behind the camera."""
        numbers = np.concatenate([np.ravel(value) for value in state.arrays().values()])
        if not np.isfinite(numbers).all():
            return None
        rotation = rotation_matrix(state.rotation)
        points = (face.points + (state.expression @ face.moves).reshape(-1, 3)) @ rotation.T + state.translation
        if points[:, 2].min() < 0.05:
            return None
        u = camera.fx * points[:, 0] / points[:, 2] + camera.cx
        v = camera.fy * points[:, 1] / points[:, 2] + camera.cy
        towards = -(points * (face.normals @ rotation.T)).sum(axis=1) / np.linalg.norm(points, axis=1)
        inside = (u >= 1.0) & (v >= 1.0) & (u < camera.width - 1.0) & (v < camera.height - 1.0)
        return FaceProjection(u, v, towards > FACING, inside)

    @property
    def width(self) -> float:
        """Of the face, pixels."""
        return float(max(np.ptp(self.u), np.ptp(self.v) / 1.3, 1.0))


@dataclass(frozen=True)
class FrameMetrics:
    """What a picture looks like, beyond where the face is.

    Attributes:
        sharpness: of the face at the scale ``bin`` (pixels averaged along a side); only comparable at the same.
        hidden: part of the face that the matte lacks. vague: half-transparent part of the head, away from edges.
        colours: (N, 3) of the places of the face, in [0, 1].
    """

    sharpness: float
    bin: int
    hidden: float
    vague: float
    colours: Float32


def look(observation: Observation, view: FaceProjection) -> FrameMetrics:
    """Measure a picture whose face is in ``view``."""
    seen = view.facing & view.inside
    x, y = np.clip(view.u, 0, None).astype(np.intp), np.clip(view.v, 0, None).astype(np.intp)
    x, y = np.minimum(x, observation.rgb.shape[1] - 2), np.minimum(y, observation.rgb.shape[0] - 2)
    alpha = observation.alpha[y[seen], x[seen]]
    patch = sum(
        observation.rgb[np.maximum(y + down, 0), np.maximum(x + right, 0)].astype(np.float32)
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    )
    sharpness, scale = _sharpness(observation.rgb, view)
    matte = observation.alpha if observation.body is None else observation.body
    return FrameMetrics(
        sharpness,
        scale,
        float((alpha < 128).mean()) if len(alpha) else 1.0,
        _vagueness(matte, float(view.v.max())),
        np.asarray(patch, dtype=np.float32) / (9.0 * 255.0),
    )


class _Colours:
    """What colours a face usually has, seen from one side."""

    def __init__(self) -> None:
        self._seen = 0
        self._mean = np.zeros((0, 3), dtype=np.float32)  # (N, 3)
        self._wander = np.zeros(0, dtype=np.float32)  # (N,) how far from it a place usually is

    def strangeness(self, signs: FrameMetrics, view: FaceProjection) -> float:
        """Part of the visible face with other colours than usual, whatever the exposure; 0 while little is known."""
        seen = view.facing & view.inside
        if self._seen < KNOWN or not seen.any():
            return 0.0
        strange = self._differences(signs, seen) > np.maximum(OTHER_COLOUR, OTHER_THAN_USUAL * self._wander)
        return float(strange[seen].mean())

    def learn(self, signs: FrameMetrics, view: FaceProjection) -> None:
        seen = view.facing & view.inside
        if not self._seen:
            self._mean, self._wander = signs.colours.copy(), np.zeros(len(seen), dtype=np.float32)
        rate = max(COLOUR_RATE, 1.0 / (self._seen + 1)) * seen.astype(np.float32)
        self._wander += rate * (self._differences(signs, seen) - self._wander)
        self._mean += rate[:, None] * (signs.colours - self._mean)
        self._seen += 1

    def _differences(self, signs: FrameMetrics, seen: Mask) -> Float32:
        """(N,) from the mean, as a part of the face's brightness, after each channel's exposure is made alike."""
        if not seen.any():
            return np.zeros(len(seen), dtype=np.float32)
        gain = np.median((signs.colours[seen] + 0.02) / (self._mean[seen] + 0.02), axis=0)
        brightness = float((gain * self._mean[seen]).mean()) + 0.02
        return np.asarray(np.abs(signs.colours - gain * self._mean).mean(axis=1) / brightness, dtype=np.float32)


class FrameFilter:
    """Decides which pictures one avatar learns from.  Belongs to the thread that offers them, but for `forget`.

    Args:
        face: what is looked at. code: of a state's expression, (C,), about one in size.

    Attributes:
        taken: pictures so far. refused: others by `Reason`. news: when one was taken last that was no duplicate,
            seconds; None: never. All from any thread.
    """

    def __init__(self, face: FacePoints, code: Callable[[HeadState], Float32]) -> None:
        self.taken, self.refused = 0, Counter[Reason]()
        self.news: float | None = None
        self._face, self._code = face, code
        self._before: tuple[HeadState, FaceProjection] | None = None
        self._last = self._looked = -math.inf
        self._begin()

    def forget(self) -> None:
        """Light, glasses or camera have changed: find out anew what is usual, from the next picture on."""
        self._forgetting = True

    def _begin(self) -> None:
        self._forgetting = False
        self._kept: deque[tuple[HeadState, Float32]] = deque(maxlen=COMPARED)
        self._usual: deque[FrameMetrics] = deque(maxlen=WINDOW)
        self._looks: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)  # hidden, vague, strange
        self._colours: dict[tuple[int, int], _Colours] = {}  # of the sides from which the face was seen

    def follow(self, observation: Observation) -> None:
        """See where a head has gone that is not to be judged now: what moves is told from frame to frame."""
        view = FaceProjection.of(self._face, observation.state, observation.camera)
        self._before = (observation.state, view) if view is not None else None

    def judge(self, observation: Observation, now: float) -> Reason | None:
        """Why the picture is not worth learning from, counted; None if it is taken.  ``now``: seconds."""
        if self._forgetting:
            self._begin()
        if now - self._looked > GAP_S:
            self._last = now
        self._looked = now
        before = self._before
        self.follow(observation)
        reason = self._reason(observation, before, now)
        if reason is not None:
            self.refused[reason] += 1
            return reason
        self.taken += 1
        self._last = now
        return None

    def _reason(self, observation: Observation, before: tuple[HeadState, FaceProjection] | None, now: float) -> Reason | None:
        state = observation.state
        if self._before is None or _jumped(before, state):
            return "mistracked"
        view = self._before[1]
        if float(view.inside.mean()) < LEAST_INSIDE:
            return "cut off"
        waited = now - self._last
        code = self._code(state)
        same = self.taken >= YOUNG and any(_same(state, code, *other) for other in self._kept)
        if same and waited < PATIENCE["duplicate"]:
            return "duplicate"
        signs = look(observation, view)
        azimuth, elevation = view_angles(state) / SIDE
        colours = self._colours.setdefault((round(azimuth), round(elevation)), _Colours())
        strange = colours.strangeness(signs, view)
        faults = list(self._faults(signs, strange, _speed(before, state, view)))
        self._usual.append(signs)
        self._looks.append((signs.hidden, signs.vague, strange))
        for fault in faults:
            if waited < PATIENCE[fault]:
                return fault
        colours.learn(signs, view)
        self._kept.append((state, code))
        if not same:
            self.news = now
        return None

    def _faults(self, signs: FrameMetrics, strange: float, speed: float) -> Iterator[Reason]:
        """What is wrong with a picture, compared with those before."""
        if speed > FASTEST:
            yield "moving"
        same = [other.sharpness for other in self._usual if other.bin == signs.bin]
        if len(same) >= KNOWN and signs.sharpness < LEAST_SHARP * float(np.quantile(same, 0.8)):
            yield "blurred"
        hidden, vague, usually = np.median(self._looks, axis=0) if len(self._looks) >= KNOWN else (0.0, 0.0, 1.0)
        if signs.hidden > hidden + HIDDEN or strange > usually + STRANGE:
            yield "occluded"
        if signs.vague > vague + VAGUE:
            yield "vague matte"


def _jumped(before: tuple[HeadState, FaceProjection] | None, state: HeadState) -> bool:
    seconds = _elapsed(before[0], state) if before is not None else None
    if before is None or seconds is None:
        return False
    return _turn(before[0], state) > max(JUMP, JUMP_RATE * seconds)


def _elapsed(before: HeadState, state: HeadState) -> float | None:
    """Seconds between two states, None if they do not follow one another."""
    seconds = (state.t_capture_ns - before.t_capture_ns) / 1e9
    return seconds if 0.0 < seconds <= FRAME_S else None


def _speed(before: tuple[HeadState, FaceProjection] | None, state: HeadState, view: FaceProjection) -> float:
    """How fast the face moves across the picture, in its widths a second; 0 if that is not known."""
    seconds = _elapsed(before[0], state) if before is not None else None
    if before is None or seconds is None:
        return 0.0
    moved = np.hypot(view.u - before[1].u, view.v - before[1].v).mean()
    return float(moved) / view.width / seconds


def _turn(one: HeadState, other: HeadState) -> float:
    """The angle between two heads, radians."""
    return float(np.linalg.norm(axis_angle(rotation_matrix(one.rotation).T @ rotation_matrix(other.rotation))))


def _same(state: HeadState, code: Float32, other: HeadState, other_code: Float32) -> bool:
    turn, place, expression = SAME
    moved = float(np.linalg.norm(state.translation - other.translation)) / place
    changed = float(np.linalg.norm(code - other_code)) / expression
    near = math.hypot(moved, changed) < 1.0
    return near and math.hypot(moved, changed, _turn(state, other) / turn) < 1.0


def _sharpness(rgb: Bytes, view: FaceProjection) -> tuple[float, int]:
    """Fine detail of the face for its contrast, and the pixels that were averaged along a side."""
    height, width = rgb.shape[:2]
    left, right = (int(np.clip(edge, 0, width)) for edge in (view.u.min(), view.u.max()))
    top, bottom = (int(np.clip(edge, 0, height)) for edge in (view.v.min(), view.v.max()))
    scale = max(1, round(view.width / WIDTH))
    green = rgb[top:bottom, left:right, 1]
    rows, columns = green.shape[0] // scale, green.shape[1] // scale
    if rows < 8 or columns < 8:
        return 0.0, scale
    small = np.zeros((rows, columns), dtype=np.float32)
    for down in range(scale):
        for across in range(scale):
            small += green[down : rows * scale : scale, across : columns * scale : scale]
    small /= scale * scale
    middle = small[1:-1, 1:-1]
    detail = 4.0 * middle - small[:-2, 1:-1] - small[2:, 1:-1] - small[1:-1, :-2] - small[1:-1, 2:]
    return float(np.square(detail).mean() / (small.var() + 1.0)), scale


def _vagueness(matte: Bytes, chin: float) -> float:
    """Half-transparent pixels above the chin with none that are solid and empty nearby, as a part of the head."""
    stride = max(1, min(matte.shape) // MATTE_SIDE)
    small = matte[: max(1, int(chin)) : stride, ::stride]
    solid, empty = small > 230, small < 25
    head = int((~empty).sum())
    if min(small.shape) < 8 or not head:
        return 0.0
    inner = ~solid & ~empty & ~(_near(solid) & _near(empty))
    return float(inner.sum()) / head


def _near(mask: Mask) -> Mask:
    """Where the mask is set within three pixels along both axes."""
    grown = mask.copy()
    for away in (1, 2, 3):
        grown[away:] |= mask[:-away]
        grown[:-away] |= mask[away:]
    wide = grown.copy()
    for away in (1, 2, 3):
        wide[:, away:] |= grown[:, :-away]
        wide[:, :-away] |= grown[:, away:]
    return wide

"""Frame filter: decides whether a tracked frame is used for training, and counts the refused frames by reason.

A frame is compared with the usual values of this subject, camera and light: where all frames are blurred, none is
refused for blur.  Every reason except a mistracked or cut-off face applies only for a limited time, so that a subject
who sits still or in bad light is still learned at a low rate.  One check takes about a millisecond of one core.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from insta_runtime.field.view_range import view_angles
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.types import Bytes, Camera, Float32, Float64, HeadState, Observation

if TYPE_CHECKING:
    from insta_runtime.render.model import AvatarModel

Mask = NDArray[np.bool_]
Reason = Literal["mistracked", "cut off", "occluded", "vague matte", "moving", "blurred", "duplicate"]

MAX_WAIT_S: Final[dict[Reason, float]] = {
    "mistracked": math.inf,
    "cut off": math.inf,
    "occluded": 5.0,
    "vague matte": 4.0,
    "moving": 2.0,
    "blurred": 2.0,
    "duplicate": 1.0,
}
"""Seconds since the last accepted frame, by reason for refusal, after which a frame is accepted nevertheless."""

GAP_S: Final = 1.0
"""Seconds without a checked frame after which the waiting time of `MAX_WAIT_S` starts again."""
POINTS: Final = 160
"""Number of points on the face at which colours and visibility are sampled."""
FACING: Final = 0.35
"""Minimum cosine between a point's normal and the direction to the camera for the point to be visible."""
MIN_INSIDE: Final = 0.75
"""Minimum fraction of the face points that must lie inside the frame."""
JUMP, JUMP_RATE = math.radians(25.0), math.radians(500.0)
"""Rotation between two frames (radians) and rotation speed (rad/s); a head that exceeds both counts as mistracked."""
MAX_FRAME_GAP_S: Final = 0.25
"""Seconds between two frames above which no speed is computed."""
MAX_SPEED: Final = 1.2
"""Speed of the face in the image, in face widths per second, above which a frame is refused as moving."""
FACE_WIDTH: Final = 96
"""Width in pixels, approximately, to which the face is scaled before sharpness is measured."""
MIN_SHARPNESS: Final = 0.45
"""Fraction of the usual sharpness (80th percentile) below which a frame counts as blurred."""
WINDOW: Final = 64
"""Number of newest measured frames from which the usual values are computed."""
MIN_ACCEPTED: Final = 40
"""Number of accepted frames up to which duplicates are accepted too, because they average out noise."""
MIN_FRAMES: Final = 8
"""Minimum number of frames from which usual values are computed."""
MATTE_SIDE: Final = 128
"""Width and height in pixels, approximately, at which the matte is checked."""
MAX_VAGUE: Final = 0.06
"""Maximum excess over the usual fraction of the head that is half transparent in the matte away from edges."""
MAX_HIDDEN: Final = 0.08
"""Maximum excess over the usual fraction of the face points that are missing in the matte."""
MAX_STRANGE: Final = 0.12
"""Maximum excess over the usual fraction of the visible face points that have unusual colours."""
VIEW_ANGLE: Final = math.radians(12.0)
"""Size (radians) of the bins of view directions in which usual colours are kept separately."""
COLOUR_DIFFERENCE: Final = 0.16
"""Difference from the usual colour, as a fraction of the face's brightness, above which a point counts as unusual."""
COLOUR_DEVIATIONS: Final = 3.0
"""Multiple of a point's own mean difference that a difference must also exceed to count as unusual."""
COLOUR_RATE: Final = 0.2
"""Weight of each accepted frame in the exponential running mean of the usual colours."""
SAME: Final = 0.015, 0.003, 0.08
"""Scales of rotation (radians), translation (metres) and expression code: two head states count as duplicates if
the Euclidean norm of their distances in these scales is below 1."""
COMPARED: Final = 8
"""Number of newest accepted frames with which a new frame is compared to detect duplicates."""


@dataclass(frozen=True)
class FacePoints:
    """Sample points on the face, in head space.

    Attributes:
        points: (N, 3) positions on the neutral face, in metres.
        normals: (N, 3) unit normals.
        moves: (E, 3 N) displacements in metres per unit of each expression.  (The rotation of a jaw joint is ignored.)
    """

    points: Float64
    normals: Float64
    moves: Float64

    @staticmethod
    def of(model: AvatarModel) -> FacePoints:
        """Sample at most `POINTS` points evenly over the face of the model's subject (farthest point sampling)."""
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
        while len(chosen) < min(POINTS, len(face)):  # farthest point sampling
            away = np.minimum(away, np.linalg.norm(vertices[face] - vertices[chosen[-1]], axis=1))
            chosen.append(int(face[away.argmax()]))
        moves = model.head.expression_dirs[:, chosen].reshape(-1, 3 * len(chosen))
        return FacePoints(vertices[chosen], normals[chosen], moves.astype(np.float64))


@dataclass(frozen=True)
class FaceProjection:
    """Face points projected to the frame.

    Attributes:
        u, v: (N,) column and row in pixels.
        facing: (N,) bool, whether the point's normal faces the camera.
        inside: (N,) bool, whether the point lies inside the frame.
    """

    u: Float64
    v: Float64
    facing: Mask
    inside: Mask

    @staticmethod
    def of(face: FacePoints, state: HeadState, camera: Camera) -> FaceProjection | None:
        """Project the points in a head state; None if the state is not finite, or a point is less than 5 cm away."""
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
        """Width of the projected face in pixels."""
        return float(max(np.ptp(self.u), np.ptp(self.v) / 1.3, 1.0))


@dataclass(frozen=True)
class FrameMetrics:
    """Image quality of one frame.

    Attributes:
        sharpness: mean squared Laplacian of the face over its variance; comparable only for equal ``bin``.
        bin: side in pixels of the square blocks that were averaged before measuring sharpness.
        hidden: fraction of the visible face points that are missing in the matte.
        vague: fraction of the head that is half transparent in the matte away from edges.
        colours: (N, 3) RGB colours of the face points, in [0, 1].
    """

    sharpness: float
    bin: int
    hidden: float
    vague: float
    colours: Float32


def measure_frame(observation: Observation, view: FaceProjection) -> FrameMetrics:
    """Measure the image quality of a frame; ``view`` is the projection of the face points to it."""
    visible = view.facing & view.inside
    x, y = np.clip(view.u, 0, None).astype(np.intp), np.clip(view.v, 0, None).astype(np.intp)
    x, y = np.minimum(x, observation.rgb.shape[1] - 2), np.minimum(y, observation.rgb.shape[0] - 2)
    alpha = observation.alpha[y[visible], x[visible]]
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


class _UsualColours:
    """Running mean of the colours of the face points, for one range of view directions."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = np.zeros((0, 3), dtype=np.float32)  # (N, 3)
        self._deviation = np.zeros(0, dtype=np.float32)  # (N,) mean difference from it

    def strange_share(self, metrics: FrameMetrics, view: FaceProjection) -> float:
        """Fraction of the visible face points with unusual colours, independent of exposure; 0 with too few frames."""
        visible = view.facing & view.inside
        if self._count < MIN_FRAMES or not visible.any():
            return 0.0
        limit = np.maximum(COLOUR_DIFFERENCE, COLOUR_DEVIATIONS * self._deviation)
        strange = self._differences(metrics, visible) > limit
        return float(strange[visible].mean())

    def update(self, metrics: FrameMetrics, view: FaceProjection) -> None:
        """Add the visible colours of an accepted frame to the running means."""
        visible = view.facing & view.inside
        if not self._count:
            self._mean, self._deviation = metrics.colours.copy(), np.zeros(len(visible), dtype=np.float32)
        rate = max(COLOUR_RATE, 1.0 / (self._count + 1)) * visible.astype(np.float32)
        self._deviation += rate * (self._differences(metrics, visible) - self._deviation)
        self._mean += rate[:, None] * (metrics.colours - self._mean)
        self._count += 1

    def _differences(self, metrics: FrameMetrics, visible: Mask) -> Float32:
        """(N,) distances from the mean as a share of the face's brightness, after matching each channel's exposure."""
        if not visible.any():
            return np.zeros(len(visible), dtype=np.float32)
        gain = np.median((metrics.colours[visible] + 0.02) / (self._mean[visible] + 0.02), axis=0)
        brightness = float((gain * self._mean[visible]).mean()) + 0.02
        return np.asarray(np.abs(metrics.colours - gain * self._mean).mean(axis=1) / brightness, dtype=np.float32)


class FrameFilter:
    """Selects the frames on which one avatar is trained.  Used by the tracking thread, except `reset_baseline`.

    Args:
        face: sample points on the face.
        code: function from a head state to its expression code (C,), scaled to entries of about unit size.

    Attributes:
        accepted: number of accepted frames. refused: number of refused frames by `Reason`.
        last_novel_at: second of the last accepted frame that was no duplicate; None before the first.
            All three may be read from any thread.
    """

    def __init__(self, face: FacePoints, code: Callable[[HeadState], Float32]) -> None:
        self.accepted, self.refused = 0, Counter[Reason]()
        self.last_novel_at: float | None = None
        self._face, self._code = face, code
        self._before: tuple[HeadState, FaceProjection] | None = None
        self._last_accepted = self._last_checked = -math.inf
        self._begin()

    def reset_baseline(self) -> None:
        """Discard the usual values and the frames compared for duplicates, at the next check.

        Call it after a change of light, glasses or camera.
        """
        self._reset = True

    def _begin(self) -> None:
        self._reset = False
        self._kept: deque[tuple[HeadState, Float32]] = deque(maxlen=COMPARED)
        self._metrics: deque[FrameMetrics] = deque(maxlen=WINDOW)
        self._defects: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)  # hidden, vague, strange
        self._colours: dict[tuple[int, int], _UsualColours] = {}  # by bin of view directions

    def update_motion(self, observation: Observation) -> None:
        """Record the head state of a frame that is not checked, to measure speed between consecutive frames."""
        view = FaceProjection.of(self._face, observation.state, observation.camera)
        self._before = (observation.state, view) if view is not None else None

    def check(self, observation: Observation, now: float) -> Reason | None:
        """Check a frame at monotonic second ``now``.  Returns the reason for refusing it, or None if it is accepted.

        Either result is counted in `refused` or `taken`.
        """
        if self._reset:
            self._begin()
        if now - self._last_checked > GAP_S:
            self._last_accepted = now
        self._last_checked = now
        before = self._before
        self.update_motion(observation)
        reason = self._reason(observation, before, now)
        if reason is not None:
            self.refused[reason] += 1
            return reason
        self.accepted += 1
        self._last_accepted = now
        return None

    def _reason(
        self, observation: Observation, before: tuple[HeadState, FaceProjection] | None, now: float
    ) -> Reason | None:
        state = observation.state
        if self._before is None or _jumped(before, state):
            return "mistracked"
        view = self._before[1]
        if float(view.inside.mean()) < MIN_INSIDE:
            return "cut off"
        waited = now - self._last_accepted
        code = self._code(state)
        same = self.accepted >= MIN_ACCEPTED and any(_same(state, code, *other) for other in self._kept)
        if same and waited < MAX_WAIT_S["duplicate"]:
            return "duplicate"
        metrics = measure_frame(observation, view)
        azimuth, elevation = view_angles(state) / VIEW_ANGLE
        colours = self._colours.setdefault((round(azimuth), round(elevation)), _UsualColours())
        strange = colours.strange_share(metrics, view)
        reasons = list(self._quality_reasons(metrics, strange, _speed(before, state, view)))
        self._metrics.append(metrics)
        self._defects.append((metrics.hidden, metrics.vague, strange))
        for reason in reasons:
            if waited < MAX_WAIT_S[reason]:
                return reason
        colours.update(metrics, view)
        self._kept.append((state, code))
        if not same:
            self.last_novel_at = now
        return None

    def _quality_reasons(self, metrics: FrameMetrics, strange: float, speed: float) -> Iterator[Reason]:
        """Reasons against a frame, by comparison with the usual values."""
        if speed > MAX_SPEED:
            yield "moving"
        same = [other.sharpness for other in self._metrics if other.bin == metrics.bin]
        if len(same) >= MIN_FRAMES and metrics.sharpness < MIN_SHARPNESS * float(np.quantile(same, 0.8)):
            yield "blurred"
        enough = len(self._defects) >= MIN_FRAMES
        hidden, vague, usually_strange = np.median(self._defects, axis=0) if enough else (0.0, 0.0, 1.0)
        if metrics.hidden > hidden + MAX_HIDDEN or strange > usually_strange + MAX_STRANGE:
            yield "occluded"
        if metrics.vague > vague + MAX_VAGUE:
            yield "vague matte"


def _jumped(before: tuple[HeadState, FaceProjection] | None, state: HeadState) -> bool:
    seconds = _elapsed(before[0], state) if before is not None else None
    if before is None or seconds is None:
        return False
    return _turn(before[0], state) > max(JUMP, JUMP_RATE * seconds)


def _elapsed(before: HeadState, state: HeadState) -> float | None:
    """Seconds between two head states; None if they are not of consecutive frames."""
    seconds = (state.t_capture_ns - before.t_capture_ns) / 1e9
    return seconds if 0.0 < seconds <= MAX_FRAME_GAP_S else None


def _speed(before: tuple[HeadState, FaceProjection] | None, state: HeadState, view: FaceProjection) -> float:
    """Speed of the face in the frame, in face widths per second; 0 if unknown."""
    seconds = _elapsed(before[0], state) if before is not None else None
    if before is None or seconds is None:
        return 0.0
    moved = np.hypot(view.u - before[1].u, view.v - before[1].v).mean()
    return float(moved) / view.width / seconds


def _turn(one: HeadState, other: HeadState) -> float:
    """Angle between two head rotations, radians."""
    return float(np.linalg.norm(axis_angle(rotation_matrix(one.rotation).T @ rotation_matrix(other.rotation))))


def _same(state: HeadState, code: Float32, other: HeadState, other_code: Float32) -> bool:
    """Whether two head states, with their expression codes, are within the distances of `SAME`."""
    turn, place, expression = SAME
    moved = float(np.linalg.norm(state.translation - other.translation)) / place
    changed = float(np.linalg.norm(code - other_code)) / expression
    near = math.hypot(moved, changed) < 1.0
    return near and math.hypot(moved, changed, _turn(state, other) / turn) < 1.0


def _sharpness(rgb: Bytes, view: FaceProjection) -> tuple[float, int]:
    """Fine detail of the face relative to its contrast, and the number of pixels averaged along each side."""
    height, width = rgb.shape[:2]
    left, right = (int(np.clip(edge, 0, width)) for edge in (view.u.min(), view.u.max()))
    top, bottom = (int(np.clip(edge, 0, height)) for edge in (view.v.min(), view.v.max()))
    scale = max(1, round(view.width / FACE_WIDTH))
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
    """Share of the head above the chin that is half transparent and not near an edge of the matte."""
    stride = max(1, min(matte.shape) // MATTE_SIDE)
    small = matte[: max(1, int(chin)) : stride, ::stride]
    solid, empty = small > 230, small < 25
    head = int((~empty).sum())
    if min(small.shape) < 8 or not head:
        return 0.0
    inner = ~solid & ~empty & ~(_near(solid) & _near(empty))
    return float(inner.sum()) / head


def _near(mask: Mask) -> Mask:
    """Dilate a mask by three pixels along both axes."""
    grown = mask.copy()
    for away in (1, 2, 3):
        grown[away:] |= mask[:-away]
        grown[:-away] |= mask[away:]
    wide = grown.copy()
    for away in (1, 2, 3):
        wide[:, away:] |= grown[:, :-away]
        wide[:, :-away] |= grown[:, away:]
    return wide

"""Tracking of a whole recording: all faces first, then who it is, then every picture.

Unlike the live tracker it sees the future: MediaPipe looks at each picture afresh, its landmarks are smoothed without
lag, calibration has the range of the performance to choose from, and the head's texture is known from the start: both
from the first seven eighths, so that what is held out at the end is tracked as it would be live.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel
from insta_runtime.types import Float64, HeadState
from telepresence.runtime.frames import CameraFrame

from .calibration import Calibration, calibrate
from .fit import HeadFit
from .follower import HeadFollower
from .landmarks import FaceLandmarks
from .matting import Matter
from .smoothing import smooth
from .state import StateBuilder, with_gaze

LEARNED = 7 / 8  # of a recording, from its start, is what calibration and texture are learned from at first
STATIC_MOTION = 0.75  # px of a 512 picture from the frame before to the frame after: below it the face holds still


@dataclass(frozen=True)
class TrackedRecording:
    """What tracking made of N pictures.

    states: N; where a face was not tracked the last one is held.
    faces: N, smoothed, None where none was found.   valid: (N,) whether the face was tracked.
    errors: (N,) px of a 512 picture.   projections: (N, L, 2) likewise.
    fit_seconds, texture_seconds: (N,) processor time of the head fit alone, and of all else of following.
    """

    calibration: Calibration
    states: tuple[HeadState, ...]
    faces: tuple[FaceLandmarks | None, ...]
    errors: Float64
    projections: Float64
    fit_seconds: Float64
    texture_seconds: Float64
    valid: NDArray[np.bool_]

    def figures(self) -> dict[str, float | int]:
        """Medians over the tracked pictures, and how many there are (docs/tracking.md)."""
        tracked = self.valid
        return {
            "frames": len(self.states),
            "tracked": int(tracked.sum()),
            "reprojection_px_median": round(float(np.median(self.errors[tracked])), 4),
            "fit_ms_median": round(float(np.median(self.fit_seconds[tracked])) * 1e3, 3),
            "texture_ms_median": round(float(np.median(self.texture_seconds[tracked])) * 1e3, 3),
            "jitter_px": round(self._jitter(), 4),
        }

    def _jitter(self) -> float:
        """Median second difference of the projected landmarks (px of a 512 picture) while the face holds still."""
        before, here, after = self.projections[:-2], self.projections[1:-1], self.projections[2:]
        whole = self.valid[:-2] & self.valid[1:-1] & self.valid[2:]
        if not whole.any():
            return 0.0
        motion = np.linalg.norm(after - before, axis=2).mean(1)[whole]
        second = np.linalg.norm(after - 2 * here + before, axis=2).mean(1)[whole]
        still = motion <= max(STATIC_MOTION, float(np.percentile(motion, 10)))
        return float(np.median(second[still]))


def track_recording(
    head: HeadModel,
    found: Sequence[FaceLandmarks | None],
    pictures: Callable[[], Iterable[CameraFrame]],
    width: int,
    height: int,
    fps: float,
    focal: float | None = None,
    models: Path | None = None,
) -> TrackedRecording:
    """Fit the head to the faces ``found`` in ``pictures`` of ``width`` x ``height`` px, which are gone through twice.

    Raises UserError if there is no face at all.
    """
    faces = smooth(found, fps)
    learned = faces[: round(len(faces) * LEARNED)]
    present = [face for face in learned if face is not None] or [face for face in faces if face is not None]
    if not present:
        raise UserError(
            "no face was found in this video: it must show one face, at least 8 % of the picture's longest side"
        )
    calibration = calibrate(head, present, width, height, focal)
    matter = Matter(head, calibration.shape, models, live=False)
    try:
        follower = HeadFollower(head, calibration, matter, float(np.median([face.face_size for face in present])))
        for _ in _follow(follower, pictures(), learned, 0):
            pass
        follower.restart()
        followed = list(_follow(follower, pictures(), faces, len(learned)))
    finally:
        matter.close()
    calibration = with_gaze(head, follower.calibration, present)
    builder = StateBuilder(head, calibration, follower.basis)
    states: list[HeadState | None] = [
        builder.build(seen.fit, face, seen.t_capture_ns)
        if seen.valid and seen.fit is not None and face is not None
        else None
        for seen, face in zip(followed, faces, strict=True)
    ]
    times = [seen.t_capture_ns for seen in followed]
    return TrackedRecording(
        calibration,
        _held(states, times, len(head.expression_names)),
        tuple(faces),
        np.array([np.inf if seen.fit is None else seen.fit.error for seen in followed]),
        np.stack([seen.projection for seen in followed]),
        np.array([seen.fit_seconds for seen in followed]),
        np.array([seen.seconds - seen.fit_seconds for seen in followed]),
        np.array([seen.valid for seen in followed]),
    )


@dataclass(frozen=True)
class _Followed:
    """One picture: its fit, if it is to be believed, the landmarks (L, 2) px of a 512 picture, processor time."""

    t_capture_ns: int
    fit: HeadFit | None
    valid: bool
    projection: Float64
    seconds: float
    fit_seconds: float


def _follow(
    follower: HeadFollower, pictures: Iterable[CameraFrame], faces: Sequence[FaceLandmarks | None], learn_from: int
) -> Iterator[_Followed]:
    """Follow ``faces`` through ``pictures``, learning from number ``learn_from`` on."""
    before_ns: int | None = None
    for index, (frame, face) in enumerate(zip(pictures, faces, strict=False)):
        interval = 1.0 if before_ns is None else (frame.t_capture_ns - before_ns) / 1e9
        start = time.thread_time()
        fit, valid = follower.follow(frame.rgb, face, interval)
        if index >= learn_from:
            follower.learn()
        seconds = time.thread_time() - start
        projection = np.zeros((len(follower.basis.indices), 2))
        if fit is not None:
            projection = follower.project(fit) / follower.camera.scale
        yield _Followed(frame.t_capture_ns, fit, valid, projection, seconds, follower.fit_seconds)
        before_ns = frame.t_capture_ns


def _held(states: Sequence[HeadState | None], times_ns: Sequence[int], expressions: int) -> tuple[HeadState, ...]:
    """Gaps filled with the last state, or with the first one where there is none before."""
    last = next((state for state in states if state is not None), HeadState.neutral(expressions))
    held = []
    for state, t_capture_ns in zip(states, times_ns, strict=True):
        last = state if state is not None else replace(last, t_capture_ns=t_capture_ns)
        held.append(last)
    return tuple(held)

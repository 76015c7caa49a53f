"""Tracking of a whole recording: landmarks of all frames first, then calibration, then the head fit of every frame.

Unlike live tracking it uses later frames: landmarks are detected in each frame independently and smoothed without
lag, calibration selects from almost the whole recording, and the texture map exists from the first frame on.  Both are
computed from the first seven eighths only, so that the held-out frames at the end are tracked as they would be live.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel
from insta_runtime.types import Float64, HeadState
from telepresence.runtime.frames import CameraFrame

from .calibration import Calibration, calibrate
from .face_models import FaceModels
from .head_fit import HeadFit
from .head_tracker import HeadTracker
from .landmarks import FaceLandmarks
from .matting import PersonMatting
from .smoothing import smooth
from .state_builder import StateBuilder, calibrate_gaze

LEARNED = 7 / 8
"""Fraction of a recording, from its start, from which calibration and texture map are computed before tracking."""
STATIC_MOTION = 0.75
"""Mean landmark motion from previous to next frame, in px of a 512 px image, up to which a face counts as still."""


@dataclass(frozen=True)
class TrackedRecording:
    """Result of tracking a recording of N frames; px are those of an image whose longest side is 512.

    calibration: calibration of the subject.
    states: N head states; where the face was not tracked, the last state is repeated.
    faces: smoothed landmarks of N frames, None where no face was found.  valid: (N,) whether the face was tracked.
    errors: (N,) reprojection errors, px, infinite without a face.  projections: (N, L, 2) fitted landmarks, px.
    fit_seconds, texture_seconds: (N,) processor time of the head fit, and of everything else in the head tracker, s.
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
        """Summary by name: numbers of frames and of tracked ones, median error in px, times in ms, jitter in px."""
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
        """Median second difference over time of the projected landmarks of a still face, in px of a 512 px image."""
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
    frames: Callable[[], Iterable[CameraFrame]],
    width: int,
    height: int,
    fps: float,
    focal: float | None = None,
    models: FaceModels | None = None,
) -> TrackedRecording:
    """Fit the head model to every frame of a recording.

    Args:
        head: the head model, with a landmark embedding.
        found: unsmoothed landmarks of every frame; None where no face was found.
        frames: function that returns an iterator over the frames; called twice.
        width, height: size of the frames, px.
        fps: frames per second.
        focal: focal length in px; None: estimated from the frame size.
        models: the face models; None: run by LiteRT, with files from the cache, or downloaded.

    Raises UserError if no frame shows a face.
    """
    faces = smooth(found, fps)
    learned = faces[: round(len(faces) * LEARNED)]
    present = [face for face in learned if face is not None] or [face for face in faces if face is not None]
    if not present:
        raise UserError(
            "no face was found in this video: choose one that shows a face of at least 8 % of the frame's longest side"
        )
    calibration = calibrate(head, present, width, height, focal)
    matting = PersonMatting(head, calibration.shape, models, live=False)
    try:
        head_tracker = HeadTracker(head, calibration, matting, float(np.median([face.face_size for face in present])))
        for _ in _track_frames(head_tracker, frames(), learned, 0):
            pass
        head_tracker.restart()
        fits = list(_track_frames(head_tracker, frames(), faces, len(learned)))
    finally:
        matting.close()
    calibration = calibrate_gaze(head, head_tracker.calibration, present)
    builder = StateBuilder(head, calibration, head_tracker.basis)
    states: list[HeadState | None] = [
        builder.build(seen.fit, face, seen.t_capture_ns)
        if seen.valid and seen.fit is not None and face is not None
        else None
        for seen, face in zip(fits, faces, strict=True)
    ]
    times = [seen.t_capture_ns for seen in fits]
    return TrackedRecording(
        calibration,
        _fill_gaps(states, times, len(head.expression_names)),
        tuple(faces),
        np.array([np.inf if seen.fit is None else seen.fit.error for seen in fits]),
        np.stack([seen.projection for seen in fits]),
        np.array([seen.fit_seconds for seen in fits]),
        np.array([seen.seconds - seen.fit_seconds for seen in fits]),
        np.array([seen.valid for seen in fits]),
    )


@dataclass(frozen=True)
class _FrameFit:
    """Head fit of one frame, whether it is accepted, landmarks (L, 2) in px of a 512 px image, processor time in s."""

    t_capture_ns: int
    fit: HeadFit | None
    valid: bool
    projection: Float64
    seconds: float
    fit_seconds: float


def _track_frames(
    head_tracker: HeadTracker, frames: Iterable[CameraFrame], faces: Sequence[FaceLandmarks | None], learn_from: int
) -> Iterator[_FrameFit]:
    """Track ``faces`` through ``frames``; texture and offsets are learned from frame number ``learn_from`` on."""
    before_ns: int | None = None
    for index, (frame, face) in enumerate(zip(frames, faces, strict=False)):
        interval = 1.0 if before_ns is None else (frame.t_capture_ns - before_ns) / 1e9
        start = time.thread_time()
        fit, valid = head_tracker.update(frame.rgb, face, interval)
        if index >= learn_from:
            head_tracker.learn()
        seconds = time.thread_time() - start
        projection = np.zeros((len(head_tracker.basis.indices), 2))
        if fit is not None:
            projection = head_tracker.project(fit) / head_tracker.camera.scale
        yield _FrameFit(frame.t_capture_ns, fit, valid, projection, seconds, head_tracker.fit_seconds)
        before_ns = frame.t_capture_ns


def _fill_gaps(states: Sequence[HeadState | None], times_ns: Sequence[int], expressions: int) -> tuple[HeadState, ...]:
    """Replace each missing state (None) by the last state before it, or by the first one if there is none before."""
    last = next((state for state in states if state is not None), HeadState.neutral(expressions))
    held = []
    for state, t_capture_ns in zip(states, times_ns, strict=True):
        last = state if state is not None else replace(last, t_capture_ns=t_capture_ns)
        held.append(last)
    return tuple(held)

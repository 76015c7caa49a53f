"""Tracking of a whole recording: all faces first, then who it is, then every picture.

Unlike the live tracker it sees the future: MediaPipe looks at each picture afresh, its landmarks are smoothed without
lag, calibration has the whole range of the performance to choose from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel
from insta_runtime.types import Float64, HeadState

from .calibration import Calibration, calibrate
from .fit import HeadFit
from .health import Health
from .landmarks import FaceLandmarks
from .smoothing import smooth
from .state import StateBuilder, with_gaze

STATIC_MOTION = 0.75  # px of a 512 picture from the frame before to the frame after: below it the face holds still


@dataclass(frozen=True)
class TrackedRecording:
    """What tracking made of N pictures.

    states: N; where a face was not tracked the last one is held.
    faces: N, smoothed, None where none was found.   valid: (N,) whether the face was tracked.
    errors: (N,) px of a 512 picture.   projections: (N, L, 2) likewise.
    fit_seconds: (N,) processor time of the head fit alone.
    """

    calibration: Calibration
    states: tuple[HeadState, ...]
    faces: tuple[FaceLandmarks | None, ...]
    errors: Float64
    projections: Float64
    fit_seconds: Float64
    valid: NDArray[np.bool_]

    def figures(self) -> dict[str, float | int]:
        """``frames, tracked, reprojection_px_median, fit_ms_median, jitter_px`` (docs/tracking.md)."""
        tracked = self.valid
        return {
            "frames": len(self.states),
            "tracked": int(tracked.sum()),
            "reprojection_px_median": round(float(np.median(self.errors[tracked])), 4),
            "fit_ms_median": round(float(np.median(self.fit_seconds[tracked])) * 1e3, 3),
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
    times_ns: Sequence[int],
    width: int,
    height: int,
    focal: float | None = None,
) -> TrackedRecording:
    """Fit the head to the faces ``found`` in pictures of ``width`` x ``height`` px taken at ``times_ns``.

    Raises UserError if there is no face at all.
    """
    present = [face for face in found if face is not None]
    if not present:
        raise UserError(
            "no face was found in this video: it must show one face, at least 8 % of the picture's longest side"
        )
    faces = smooth(found)
    calibration = calibrate(head, [face for face in faces if face is not None], width, height, focal)
    calibration = with_gaze(head, calibration, [face for face in faces if face is not None])
    fitter = calibration.fitter(head)
    health = Health(fitter.camera, calibration.error)
    builder = StateBuilder(head, calibration, fitter.basis)
    count = len(faces)
    errors, seconds = np.full(count, np.inf), np.zeros(count)
    projections = np.zeros((count, len(fitter.basis.indices), 2))
    valid = np.zeros(count, np.bool_)
    states: list[HeadState | None] = []
    before: HeadFit | None = None
    for index, face in enumerate(faces):
        fit = None
        if face is not None:
            interval = (times_ns[index] - times_ns[index - 1]) / 1e9 if index else 1.0
            start = time.thread_time()
            fit = fitter.fit(face, None if health.lost else before, interval)
            seconds[index] = time.thread_time() - start
            errors[index] = fit.error
            projections[index] = fitter.project(fit) / fitter.camera.scale
        valid[index] = health.judge(fit)
        before = fit
        if valid[index] and fit is not None and face is not None:
            states.append(builder.build(fit, face, times_ns[index]))
        else:
            states.append(None)
    return TrackedRecording(
        calibration,
        _held(states, times_ns, len(head.expression_names)),
        tuple(faces),
        errors,
        projections,
        seconds,
        valid,
    )


def _held(states: Sequence[HeadState | None], times_ns: Sequence[int], expressions: int) -> tuple[HeadState, ...]:
    """Gaps filled with the last state, or with the first one where there is none before."""
    last = next((state for state in states if state is not None), HeadState.neutral(expressions))
    held = []
    for state, t_capture_ns in zip(states, times_ns, strict=True):
        last = state if state is not None else replace(last, t_capture_ns=t_capture_ns)
        held.append(last)
    return tuple(held)

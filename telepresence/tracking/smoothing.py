"""Smoothing of recorded landmarks over time by a symmetric Gaussian, which causes no lag."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from insta_runtime.types import Float32

from .landmarks import FaceLandmarks

SIGMA = 1 / 30
"""Standard deviation of the Gaussian smoothing kernel, in seconds."""
REACH = 3
"""Half-width at which the Gaussian kernel is truncated, in standard deviations."""


def smooth(faces: Sequence[FaceLandmarks | None], fps: float) -> list[FaceLandmarks | None]:
    """Smooth the landmarks and scores of recorded faces over time, for frames at ``fps`` frames per second.

    None (no face) remains None; runs of frames with a face are smoothed separately.
    """
    result: list[FaceLandmarks | None] = []
    for _, group in groupby(faces, key=lambda face: face is not None):
        run = list(group)
        present = [face for face in run if face is not None]
        result += _smooth_faces(present, SIGMA * fps) if present else run
    return result


def smooth_run(values: Float32, sigma: float) -> Float32:
    """Smooth ``values`` (N, ...) along the first axis, with a standard deviation of ``sigma`` frames.

    At both ends the kernel is truncated and renormalised.
    """
    reach = int(np.ceil(REACH * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    total = np.zeros(values.shape, np.float64)
    weight = np.zeros(len(values))
    for shift, share in zip(range(-reach, reach + 1), kernel, strict=True):
        low, high = max(0, -shift), min(len(values), len(values) - shift)
        if high > low:
            total[low:high] += share * values[low + shift : high + shift]
            weight[low:high] += share
    return (total / weight.reshape(-1, *[1] * (values.ndim - 1))).astype(np.float32)


def _smooth_faces(run: Sequence[FaceLandmarks], sigma: float) -> list[FaceLandmarks]:
    names = list(run[0].scores)
    points = smooth_run(np.stack([face.points for face in run]), sigma)
    scores = smooth_run(np.array([[face.scores.get(name, 0.0) for name in names] for face in run], np.float32), sigma)
    return [
        FaceLandmarks(place, dict(zip(names, values.tolist(), strict=True)))
        for place, values in zip(points, scores, strict=True)
    ]

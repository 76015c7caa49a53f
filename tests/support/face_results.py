"""Landmarks, scores and mattes of given images by one library, in a process of its own.

``python -m tests.support.face_results LIBRARY MODELS IMAGES.npz RESULTS.npz``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from telepresence.tracking.face_models import FaceModels

FRAME_S = 0.033
"""Seconds from one frame of a video to the next."""
FACE_SIZE = 478 * 3 + 52
"""Numbers of one face: its landmarks (478, 3), then its scores (52,)."""


def faces(models: FaceModels, images: Sequence[np.ndarray], *, video: bool) -> np.ndarray:
    """(N, FACE_SIZE) float32 for N images, or frames of a ``video``; NaN where there is no face."""
    mesh = models.face_mesh(live=video)
    rows = np.full((len(images), FACE_SIZE), np.nan, np.float32)
    for index, rgb in enumerate(images):
        found = mesh.track(rgb, (index + 1) * FRAME_S) if video else mesh.detect(rgb)
        if found is not None:
            rows[index] = np.concatenate([found[0].ravel(), found[1]])
    mesh.close()
    return rows


def mattes(models: FaceModels, windows: Sequence[np.ndarray], *, live: bool) -> np.ndarray:
    """(N, 256, 256) float32 for N images of 256 x 256 px."""
    segmenter = models.segmenter(live=live)
    found = np.stack([segmenter.segment(window) for window in windows])
    segmenter.close()
    return found


def results(models: FaceModels, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Results by name: ``video ...`` is a stack of frames, ``windows`` one for mattes, any other entry one image."""
    found = {}
    for name, value in images.items():
        if name == "windows":
            found["matte"] = mattes(models, list(value), live=False)
            found["fast matte"] = mattes(models, list(value), live=True)
        elif name.startswith("video"):
            found[name] = faces(models, list(value), video=True)
            found[f"frames of {name}"] = faces(models, list(value), video=False)
        else:
            found[name] = faces(models, [value], video=False)
    return found


if __name__ == "__main__":
    library, folder, source, target = sys.argv[1:]
    with np.load(source) as stored:
        np.savez(target, **results(FaceModels(Path(folder), library), dict(stored)))

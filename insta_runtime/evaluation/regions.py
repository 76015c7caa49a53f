"""Bounding boxes of mouth and eyes in an image, from the tracked head mesh."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from insta_runtime.geometry import camera_vertices
from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.types import Camera, Float32, HeadState

# Indices of MediaPipe's face landmarks on the outlines of lips and eyelids.
LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIDS_RIGHT = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LIDS_LEFT = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)

MOUTH_GROWN, EYES_GROWN = 0.04, 0.05
"""Margins by which the boxes of lips and of lids are extended on all sides, as shares of the face's width."""
LIPS_MASK, FACE_MASK, LID_MOTION = 0.9, 0.5, 0.3
"""Thresholds above which a vertex belongs to a region: lips mask and share of the largest eyelid motion (both only for
a head without landmarks), and face mask."""

DEFINITION: Final = (
    "mouth, eyes: boxes of the lip and lid landmarks of the tracked head mesh (of a head without landmarks: of its lip "
    f"and lid vertices), grown by {100 * MOUTH_GROWN:g} % and {100 * EYES_GROWN:g} % of the face's width in the picture"
)

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a box in pixels."""


class FaceRegions:
    """Computes the bounding boxes of mouth and eyes of one subject in images, from tracked head states.

    They depend only on the tracked head state, so they are the same for every avatar that is evaluated.
    """

    def __init__(self, rig: HeadRig, shape: Float32) -> None:
        """``rig``: rig of the head model; ``shape``: (S,) identity code of the subject."""
        self._rig, self._shape = rig, shape
        self._points = {name: torch.from_numpy(points) for name, points in _outlines(rig.model).items()}

    def boxes(self, state: HeadState, camera: Camera) -> dict[str, list[Box]]:
        """Bounding boxes of ``mouth`` (one) and ``eyes`` (right, left) in pixels of the image of ``camera``, by region.

        They are clipped to the image; boxes outside it, or of points behind the camera, are left out.
        """
        pixels = self.pixels(state, camera)
        face = pixels[self._points["face"]]
        width = float(face[:, 0].max() - face[:, 0].min())
        return {
            "mouth": _grown([pixels[self._points["lips"]]], MOUTH_GROWN * width, camera),
            "eyes": _grown([pixels[self._points[n]] for n in ("right", "left")], EYES_GROWN * width, camera),
        }

    def motion(self, before: HeadState, after: HeadState, camera: Camera) -> float:
        """Mean displacement of the face's vertices from the state ``before`` to ``after``, in pixels of ``camera``.

        NaN if any of them is behind the camera.
        """
        face = self._points["face"]
        return float((self.pixels(after, camera)[face] - self.pixels(before, camera)[face]).norm(dim=-1).mean())

    def pixels(self, state: HeadState, camera: Camera) -> torch.Tensor:
        """Pixel positions x, y of the vertices, then of the L landmarks that the head model has, (V + L, 2) on the CPU.

        NaN for points behind the camera.
        """
        points = camera_vertices(self._rig.pose(self._shape, state).vertices, state).cpu()
        embedding = self._rig.model.embedding
        if embedding is not None:
            landmarks = embedding.points(points.numpy(), self._rig.model.faces)
            points = torch.cat([points, torch.from_numpy(landmarks.astype(np.float32))])
        x, y, z = points.unbind(-1)
        z = torch.where(z > 0.0, z, torch.nan)
        return torch.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], dim=-1)


def masks(boxes: dict[str, list[Box]], camera: Camera, device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Mask (H, W) bool of each region in ``boxes``, by name: pixels whose centres lie in one of its boxes."""
    x = torch.arange(camera.width, device=device) + 0.5
    y = torch.arange(camera.height, device=device)[:, None] + 0.5
    found = {}
    for name, region_boxes in boxes.items():
        mask = torch.zeros((camera.height, camera.width), dtype=torch.bool, device=device)
        for left, top, right, bottom in region_boxes:
            mask |= (x > left) & (x < right) & (y > top) & (y < bottom)
        found[name] = mask
    return found


def _outlines(model: HeadModel) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Indices into `FaceRegions.pixels` of the ``face``, the ``lips``, and the ``right`` and ``left`` lids."""
    face = np.flatnonzero(model.masks["face"] > FACE_MASK)
    if model.embedding is not None:
        first = len(model.template)
        lips, right, left = (first + np.array(some) for some in (LIPS, LIDS_RIGHT, LIDS_LEFT))
        return {"face": face, "lips": lips, "right": right, "left": left}
    motion = np.linalg.norm(model.eyelid_dirs, axis=-1)  # (2, V): left, right
    left, right = (np.flatnonzero(some > LID_MOTION * some.max()) for some in motion)
    return {"face": face, "lips": np.flatnonzero(model.masks["lips"] > LIPS_MASK), "right": right, "left": left}


def _grown(parts: list[torch.Tensor], margin: float, camera: Camera) -> list[Box]:
    boxes = []
    for part in parts:
        if not len(part) or not bool(part.isfinite().all()):
            continue
        left, top = (part.min(0).values - margin).tolist()
        right, bottom = (part.max(0).values + margin).tolist()
        if left < camera.width and top < camera.height and right > 0.0 and bottom > 0.0:
            boxes.append((max(left, 0.0), max(top, 0.0), min(right, camera.width), min(bottom, camera.height)))
    return boxes

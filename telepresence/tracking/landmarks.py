"""Face landmarks and blendshape scores from MediaPipe's models, for large and small faces.

The face detector misses faces smaller than about 12 % of the frame.  So a small face is tracked in a square
window around its last position, and searched for in overlapping square tiles when it is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from insta_runtime.types import Bytes, Float32
from telepresence.runtime.frames import Landmarks

from .face_models import FaceModels

SMALL_FACE = 0.15
"""Face size, as a fraction of the frame's longest side, below which a face is tracked in a window around it."""
WINDOW_SCALE = 2.8
"""Side of the window in which a small face is tracked, as a multiple of the face size."""
TILE_SCALES = (1.0, 2 / 3, 1 / 2)
"""Sides of the tiles in which small faces are searched, as fractions of the frame's shortest side."""
LIVE_TILES = 4
"""Number of tiles searched for a small face in one live frame; the search continues in the next frame."""
TILE_INTERVAL = 5
"""Interval, in frames without a face, between two searches through all tiles in a recording."""
FRAME_SECONDS = 0.033
"""Interval between live frames, in seconds, that is assumed when landmarks are smoothed."""


BLENDSHAPES = (
    *("_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft"),
    *("eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft"),
    *("eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft"),
    *("jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight"),
    *("mouthFunnel", "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight"),
    *("mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *("mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft"),
    *("mouthUpperUpRight", "noseSneerLeft", "noseSneerRight"),
)
"""Names of MediaPipe's 52 blendshape scores, in the order of the model's output."""


@dataclass(frozen=True)
class FaceLandmarks:
    """Landmarks and blendshape scores of one face in one frame.

    points: (478, 3) float32; x and y in pixels of the whole frame, z (negative towards the camera) at the same scale.
    scores: blendshape scores in [0, 1] by ARKit name.
    """

    points: Float32
    scores: dict[str, float]

    @staticmethod
    def from_normalised(landmarks: Landmarks, width: int, height: int) -> FaceLandmarks:
        """Convert landmarks from a browser, in fractions of the image, to px of a ``width`` x ``height`` frame."""
        points = landmarks.points * np.array([width, height, width], np.float32)
        return FaceLandmarks(points, dict(zip(BLENDSHAPES, landmarks.scores.tolist(), strict=True)))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Bounding box of the landmarks in pixels of the frame: left, top, right, bottom."""
        low, high = self.points[:, :2].min(0), self.points[:, :2].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def face_size(self) -> float:
        """Longer side of the landmarks' bounding box, in pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


class FaceLandmarker:
    """Finds the landmarks of one face in a sequence of frames, also of a small face; call `close` at the end.

    With ``live`` the face is tracked from frame to frame (faster; smoothing delays landmarks by 0.3 to 0.5 frames).
    Otherwise it is detected in each frame independently (for recordings, smoothed afterwards).  ``models`` are the face
    models; None: the default ones.
    """

    def __init__(self, models: FaceModels | None = None, *, live: bool) -> None:
        self._mesh = (models or FaceModels()).face_mesh(live=live)
        self._seconds = 0.0  # time of the last live frame
        self._last: FaceLandmarks | None = None
        self._live = live
        self._misses = 0  # number of frames in a row without a face

    def detect(self, rgb: Bytes) -> FaceLandmarks | None:
        """Landmarks and scores of the face in the next frame ``rgb`` (H, W, 3) uint8; None if no face is found."""
        face = self._follow_small(rgb) or self._whole(rgb) or self._search(rgb)
        self._last = face
        self._misses = 0 if face is not None else self._misses + 1
        return face

    def close(self) -> None:
        """Release the face models."""
        self._mesh.close()

    def __enter__(self) -> FaceLandmarker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow_small(self, rgb: Bytes) -> FaceLandmarks | None:
        last = self._last
        if last is None or last.face_size >= SMALL_FACE * max(rgb.shape[:2]):
            return None
        left, top, right, bottom = last.box
        side = WINDOW_SCALE * last.face_size
        return self._in_window(rgb, (left + right - side) / 2, (top + bottom - side) / 2, side)

    def _whole(self, rgb: Bytes) -> FaceLandmarks | None:
        return self._run(rgb, 0, 0, follow=self._live)

    def _search(self, rgb: Bytes) -> FaceLandmarks | None:
        tiles = _tiles(*rgb.shape[:2])
        if self._live:
            first = self._misses * LIVE_TILES % len(tiles)
            tiles = tiles[first : first + LIVE_TILES]
        elif self._misses % TILE_INTERVAL:
            return None
        for left, top, side in tiles:
            found = self._in_window(rgb, left, top, side)
            if found is not None:
                # The tile may cut the face: detect again in a window centred on it.
                self._last = found
                return self._follow_small(rgb) or found
        return None

    def _in_window(self, rgb: Bytes, left: float, top: float, side: float) -> FaceLandmarks | None:
        height, width = rgb.shape[:2]
        x0, y0 = max(0, round(left)), max(0, round(top))
        x1, y1 = min(width, round(left + side)), min(height, round(top + side))
        if x1 - x0 < 16 or y1 - y0 < 16:
            return None
        return self._run(rgb[y0:y1, x0:x1], x0, y0, follow=False)

    def _run(self, rgb: Bytes, left: int, top: int, *, follow: bool) -> FaceLandmarks | None:
        if follow:
            self._seconds += FRAME_SECONDS
            found = self._mesh.track(rgb, self._seconds)
        else:
            found = self._mesh.detect(rgb)
        if found is None:
            return None
        points, scores = found
        return FaceLandmarks(
            points + np.array([left, top, 0], np.float32), dict(zip(BLENDSHAPES, scores.tolist(), strict=True))
        )


def _tiles(height: int, width: int) -> list[tuple[float, float, float]]:
    """Overlapping squares (left, top, side) that cover the frame, large ones first, from the centre outwards."""
    tiles = []
    for scale in TILE_SCALES:
        side = scale * min(height, width)
        tiles += [(left, top, side) for top in _starts(height, side) for left in _starts(width, side)]
    return tiles


def _starts(length: int, side: float) -> list[float]:
    """Offsets of tiles of ``side`` that cover ``length`` with an overlap of one half, sorted from the middle."""
    steps = max(0, int(np.ceil((length - side) / (side / 2) - 1e-6)))
    starts = np.linspace(0, length - side, steps + 1)
    return sorted(starts.tolist(), key=lambda start: abs(start + side / 2 - length / 2))

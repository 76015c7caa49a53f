"""Face landmarks and blendshape scores from MediaPipe's models, run on LiteRT.

The steps and constants are those of MediaPipe's Face Landmarker graph (mediapipe/tasks/cc/vision/face_landmarker), so
both give the same landmarks to a few hundredths of a pixel.  BlazeFace finds the face in the whole image (Bazarevsky et
al. 2019); the face mesh model finds 478 landmarks in a rotated square around it (Grishchenko et al. 2020); a third one
computes 52 blendshape scores from 146 of them.  In a video the square is given by the landmarks of the previous frame,
and the landmarks are smoothed by a one-euro filter (Casiez et al. 2012).
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes, Float32, Float64

from .litert import LiteRtModel

LANDMARKS = 478
"""Number of landmarks of MediaPipe's face mesh, including ten of the irises."""
MODELS = ("face_detector.tflite", "face_landmarks_detector.tflite", "face_blendshapes.tflite")
"""File names of face detector, face mesh and blendshape model in the archive ``face_landmarker.task``."""
DETECTOR_SIZE = 128
"""Side of the face detector's square input image, in pixels."""
MESH_SIZE = 256
"""Side of the face mesh model's square input image, in pixels."""
MIN_SCORE = 0.5
"""Minimum probability of a face at which a detection, or a face mesh, is accepted."""
OVERLAP = 0.5
"""Intersection over union above which another detection is averaged with the best one (non-maximum suppression)."""
ENLARGE = 1.5
"""Side of the square for the face mesh model, as a multiple of the side of the box around the face."""
EYE_CORNERS = (33, 263)
"""Landmark numbers of the outer corners of right and left eye, which determine the roll of the face region."""
MIN_CUTOFF_HZ = 0.05
"""Cut-off frequency of the one-euro filter, in Hz, while the face does not move."""
BETA = 80.0
"""Growth of the one-euro filter's cut-off frequency with speed: Hz per (face size per second)."""
SPEED_CUTOFF_HZ = 1.0
"""Cut-off frequency, in Hz, of the low-pass filter for the speed within the one-euro filter."""
MIN_FACE_SIZE = 1e-6
"""Face size, in pixels, below which landmarks are not smoothed."""

BLENDSHAPE_LANDMARKS = np.array(
    [
        *(0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70),
        *(78, 80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149),
        *(150, 152, 153, 154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195),
        *(197, 234, 246, 249, 251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300),
        *(308, 310, 311, 312, 314, 317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375),
        *(377, 378, 379, 380, 381, 382, 384, 385, 386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454),
        *(466, 468, 469, 470, 471, 472, 473, 474, 475, 476, 477),
    ]
)
"""Landmark numbers (146,) whose positions are the input of the blendshape model, in the order of that input."""


@dataclass(frozen=True)
class FaceRegion:
    """Rotated rectangle around a face: centre and sides in pixels of the image, clockwise roll in radians."""

    x: float
    y: float
    width: float
    height: float
    roll: float

    @staticmethod
    def around(points: Float64) -> FaceRegion:
        """Square region around landmarks (478, 3) of one frame, in which the next frame of a video is searched."""
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        right, left = points[list(EYE_CORNERS), :2]
        side = ENLARGE * float((high - low).max())
        x, y = (float(value) for value in (low + high) / 2)
        return FaceRegion(x, y, side, side, math.atan2(left[1] - right[1], left[0] - right[0]))

    def to_cut_out(self, side: int) -> Float64:
        """Affine map (3, 3) from image pixels to pixels of an upright square image of this region, ``side`` px wide."""
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        move = np.array([[1.0, 0.0, -self.x], [0.0, 1.0, -self.y], [0.0, 0.0, 1.0]])
        scale = np.array([[side / self.width, 0.0, side / 2], [0.0, side / self.height, side / 2], [0.0, 0.0, 1.0]])
        return scale @ turn @ move

    def from_unit(self, points: Float64) -> Float64:
        """Convert points (N, 3) from fractions of this region to image pixels; z is multiplied by the width."""
        offset = (points[:, :2] - 0.5) * (self.width, self.height)
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        x, y = offset[:, 0] * cos - offset[:, 1] * sin + self.x, offset[:, 0] * sin + offset[:, 1] * cos + self.y
        return np.stack([x, y, points[:, 2] * self.width], axis=1)


class OneEuroFilter:
    """One-euro filter: low-pass filter of landmarks whose cut-off frequency grows with speed; MediaPipe's constants."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._raw: Float64 | None = None
        self._smooth = self._speed = np.zeros(())

    def reset(self) -> None:
        """Forget all previous landmarks, so that the next call of `apply` returns its landmarks unchanged."""
        self._raw = None

    def apply(self, points: Float64, seconds: float) -> Float64:
        """Smoothed landmarks (N, 3), in pixels, of the frame at ``seconds``, which must increase from call to call."""
        size = float(np.ptp(points[:, :2], axis=0).mean())
        if self._raw is None or size < MIN_FACE_SIZE:
            self._smooth, self._speed = points, np.zeros_like(points)
        else:
            rate = 1.0 / (seconds - self._seconds)
            share = _share(np.float64(SPEED_CUTOFF_HZ), rate)
            self._speed = share * (points - self._raw) * (rate / size) + (1.0 - share) * self._speed
            share = _share(MIN_CUTOFF_HZ + BETA * np.abs(self._speed), rate)
            self._smooth = share * points + (1.0 - share) * self._smooth
        self._raw, self._seconds = points, seconds
        return self._smooth


class FaceMesh:
    """MediaPipe's face landmarker run by LiteRT, for one face (a `FaceMeshModel`).  Not thread-safe."""

    def __init__(self, task: Path) -> None:
        """Load MediaPipe's ``face_landmarker.task``.  Raises UserError if it cannot be read or run."""
        try:
            with zipfile.ZipFile(task) as bundle:
                files = [bundle.read(name) for name in MODELS]
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{task} cannot be read ({error}): delete it, and it is downloaded again") from None
        self._detector, self._mesh, self._blendshapes = (LiteRtModel(file) for file in files)
        self._anchors = _anchors()
        self._region: FaceRegion | None = None
        self._filter = OneEuroFilter()

    def detect(self, rgb: Bytes) -> tuple[Float32, Float32] | None:
        """Landmarks (478, 3) in px and scores (52,) of the face in an image; None: no face (`FaceMeshModel.detect`)."""
        found = self._landmarks(rgb, self._find(rgb))
        return None if found is None else (found.astype(np.float32), self._scores(found))

    def track(self, rgb: Bytes, seconds: float) -> tuple[Float32, Float32] | None:
        """Landmarks (478, 3) in px and scores (52,) in the next video frame; None: no face (`FaceMeshModel.track`)."""
        found = self._landmarks(rgb, self._region or self._find(rgb))
        if found is None:
            self._region = None
            self._filter.reset()
            return None
        self._region = FaceRegion.around(found)
        smooth = self._filter.apply(found, seconds)
        return smooth.astype(np.float32), self._scores(smooth)

    def close(self) -> None:
        """Do nothing: the models are released with this object."""

    def _find(self, rgb: Bytes) -> FaceRegion | None:
        """Region of the most probable face in the whole image; None if there is no face."""
        import cv2

        height, width = rgb.shape[:2]
        side = max(height, width)
        whole = FaceRegion(width / 2, height / 2, side, side, 0.0)  # pixels outside the image are black
        image = _cut_out(rgb, whole, DETECTOR_SIZE, cv2.BORDER_CONSTANT)
        outputs = self._detector(image.astype(np.float32) / 127.5 - 1.0)
        scores = _probability(outputs["classificators"].ravel())
        kept = np.flatnonzero(scores >= MIN_SCORE)
        if not len(kept):
            return None
        raw = outputs["regressors"][0, kept].astype(np.float64) / DETECTOR_SIZE
        scores, anchors = scores[kept], self._anchors[kept]
        centre, size = raw[:, :2] + anchors, raw[:, 2:4]
        low, high = centre - size / 2, centre + size / 2
        eyes = raw[:, 4:8].reshape(-1, 2, 2) + anchors[:, None]
        # Weighted non-maximum suppression: the boxes that overlap the best one are averaged, weighted by score.
        best = int(scores.argmax())
        together = _overlap(low, high, best) > OVERLAP
        together[best] = True
        weight = np.where(together, scores, 0.0)
        weight /= weight.sum()
        corners = np.stack([weight @ low, weight @ high, weight @ eyes[:, 0], weight @ eyes[:, 1]])
        low, high, right, left = whole.from_unit(np.pad(corners, ((0, 0), (0, 1))))[:, :2]
        x, y = (float(value) for value in (low + high) / 2)
        across, down = (float(value) for value in (high - low) * ENLARGE)
        return FaceRegion(x, y, across, down, math.atan2(left[1] - right[1], left[0] - right[0]))

    def _landmarks(self, rgb: Bytes, region: FaceRegion | None) -> Float64 | None:
        """Landmarks (478, 3) in pixels of the face in ``region``; None if there is no face."""
        import cv2

        if region is None or not min(region.width, region.height) >= 1.0:
            return None
        image = _cut_out(rgb, region, MESH_SIZE, cv2.BORDER_REPLICATE)
        outputs = self._mesh(image.astype(np.float32) / 255.0)
        if float(_probability(outputs["Identity_1"].ravel())[0]) <= MIN_SCORE:
            return None
        points = region.from_unit(outputs["Identity"].reshape(LANDMARKS, 3).astype(np.float64) / MESH_SIZE)
        return points if bool(np.isfinite(points).all()) else None

    def _scores(self, points: Float64) -> Float32:
        outputs = self._blendshapes(points[BLENDSHAPE_LANDMARKS, :2].astype(np.float32))
        return next(iter(outputs.values())).ravel()


def _cut_out(rgb: Bytes, region: FaceRegion, side: int, border: int) -> Bytes:
    """Upright image (side, side, 3) of ``region``, bilinear; ``border`` is OpenCV's border mode beyond the image."""
    import cv2

    return cv2.warpPerspective(
        rgb, region.to_cut_out(side), (side, side), flags=cv2.INTER_LINEAR, borderMode=border
    ).astype(np.uint8, copy=False)


def _anchors() -> Float64:
    """Anchor centres (896, 2) of the detector, as fractions of its image: 2 per cell of 8 px, 6 per cell of 16 px."""
    centres = []
    for cell, boxes in ((8, 2), (16, 6)):
        count = DETECTOR_SIZE // cell
        row, column = np.divmod(np.arange(count * count), count)
        centres.append(np.repeat((np.stack([column, row], axis=1) + 0.5) / count, boxes, axis=0))
    return np.concatenate(centres)


def _overlap(low: Float64, high: Float64, best: int) -> Float64:
    """Intersection over union (N,) of all boxes, given by their corners (N, 2), with box number ``best``."""
    common = np.clip(np.minimum(high, high[best]) - np.maximum(low, low[best]), 0.0, None).prod(axis=1)
    area = (high - low).prod(axis=1)
    return np.asarray(common / np.maximum(area + area[best] - common, 1e-12))


def _probability(logits: Float32) -> Float64:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -100.0, 100.0))))


def _share(cutoff: Float64 | np.float64, rate: float) -> Float64:
    """Weight of the newest value in a first-order low-pass filter with ``cutoff`` Hz at ``rate`` values per second."""
    return np.asarray(1.0 / (1.0 + rate / (2.0 * math.pi * cutoff)))

"""Texture map of a subject's head: image corners on hair, ears and forehead that are found again in each frame.

Landmarks lie on the face and move with its expressions, so a pose fitted to landmarks alone is wrong by degrees, which
is visible at the top of the head.  Texture on the rigid part of the head gives the rotation.  A few keyframes hold the
corners of one subject.  Each new frame is compared with the keyframes seen from about the same direction (Lucas-Kanade
tracking on the keyframe, warped to the expected pose) and never with the previous frame, so that no drift accumulates.
Bundle adjustment estimates the positions of the corners in head space; the landmarks define the frame of reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from insta_runtime.head import HeadModel
from insta_runtime.types import Bytes, Float32, Float64

from .bundle_adjustment import BundleViews, project
from .crop import Crop
from .head_fit import HeadFit, Pinhole, TextureMatches
from .landmarks import FaceLandmarks

TexturePatch = NDArray[np.uint8]
"""(size, size) uint8 image: high-pass filtered grey values of a window around the face; 128 is the local mean."""

WINDOW = 2.4
"""Side of the window around the face in which texture is tracked, as a multiple of the face size."""
WINDOW_SIZE = 384
"""Maximum side to which the window around the face is resized, in px."""
BACKGROUND = 15
"""Half-width, in px of the window, of the box filter whose result is subtracted to remove shading."""
CORNER_SIGMA = 0.6
"""Standard deviation of a matched corner's position, in px of an image whose longest side is 512."""
CORNERS = 64
"""Maximum number of image corners detected in a keyframe."""
SPACING = 9
"""Minimum distance between two corners of a keyframe, in px of the window."""
QUALITY = 0.001
"""Minimum quality of a corner, as a fraction of the best one in the keyframe (`cv2.goodFeaturesToTrack`)."""
EDGE = 5
"""Margin inside the matte, in px of the window, without corners: those of a silhouette are no points of the head."""
PATCH = 21
"""Side of the square around a corner that Lucas-Kanade tracking compares, in px of the window."""
ROUND_TRIP_TOLERANCE = 0.7
"""Maximum distance, in px of the window, between a corner and its position after tracking it forward and back."""
KEYFRAMES = 16
"""Maximum number of keyframes of a texture map."""
ANCHORS = 2
"""Number of keyframes, those with the most similar view, with which each frame is compared."""
NEW_VIEW_ANGLE = np.deg2rad(3.0)
"""View difference from the most similar keyframe, in radians, above which a frame becomes a keyframe."""
REPLACEMENT_RATIO = 1.5
"""With `KEYFRAMES` keyframes, a frame replaces one if its view differs this many times as much as the closest two."""
SCALE_ANGLE = 0.5
"""Angle, in radians, to which a change of the head's distance by the factor e is equivalent in a view difference."""
MIN_CORNERS = 12
"""Minimum number of corners in a keyframe, and of matched corners in a frame; with fewer, texture is not used."""
LANDMARK_SHARE = 1.5
"""Factor on the information of a keyframe's landmark pose, because errors of corners are more strongly correlated."""
ADJUSTMENTS = 4
"""Number of iterations of bundle adjustment after a keyframe is added."""
RIGID_ABOVE = 0.035
"""Height above the eyes, in metres, above which the head is treated as rigid: the upper end of the brows."""
NOSE = (168, 193, 417, 122, 351, 196, 419, 3, 248, 51, 281, 45, 275, 4)
"""Landmark numbers around the rigid part of the nose."""
MOUTH_CORNERS = (61, 291)
"""Landmark numbers of the corners of the mouth; below them hair lies on the shoulders and is not rigid."""
HAIR = 0.01
"""Assumed distance of hair from the scalp, in metres, in the initial positions of corners."""


@dataclass
class _Keyframe:
    """One keyframe of a texture map, with its pose from bundle adjustment (rotation, translation) and corners."""

    patch: TexturePatch
    crop: Crop
    landmark_fit: HeadFit  # fit to the landmarks alone
    rotation: Float64
    translation: Float64
    corners: Float32  # (P, 2) px of the frame
    span: slice  # range of its corners among all points of the map
    information: Float64  # (6, 6) information matrix of the pose of landmark_fit, times LANDMARK_SHARE


class TextureMap:
    """Texture map of the head of one subject: keyframes, and the positions of their image corners in head space.

    Args:
        head: the head model, with a landmark embedding.
        shape: (S,) identity code of the subject.
        camera: camera of the frames.
        face_size: typical size of the face, px (`FaceLandmarks.face_size`).
    """

    def __init__(self, head: HeadModel, shape: Float32, camera: Pinhole, face_size: float) -> None:
        self._camera = camera
        self._side = max(32, round(WINDOW * face_size))
        self._size = min(self._side, WINDOW_SIZE)
        self._sigma = CORNER_SIGMA * camera.scale
        rest = head.template + np.tensordot(shape, head.shape_dirs, 1)
        eyes = head.joints[3:].mean(0) + np.tensordot(shape, head.joint_shape_dirs[:, 3:].mean(1), 1)
        assert head.embedding is not None
        corners = rest[head.faces[head.embedding.face]]
        places = np.einsum("lc,lcx->lx", head.embedding.bary, corners)
        self._soft = np.flatnonzero(places[:, 1] < eyes[1] + RIGID_ABOVE)  # landmarks that expressions move
        self._surface = rest[::3].astype(np.float64)
        self._outside = HAIR * np.repeat(head.masks["scalp"][::3, None], 3, 1) * _outward(rest[::3], eyes)
        self._views = BundleViews(
            np.zeros((0, 3, 3)),
            np.zeros((0, 3)),
            np.zeros((0, 3)),
            np.zeros((0, 3)),
            np.zeros((0, 0, 2)),
            np.zeros((0, 0), np.bool_),
            np.zeros((0, 3, 3)),
            np.zeros((0, 3)),
            np.zeros((0, 6, 6)),
        )
        self._covariance = np.zeros((0, 3, 3))
        self._keyframes: list[_Keyframe] = []

    def window(self, face: FaceLandmarks) -> Crop:
        """Square window of the frame, around ``face`` and a little higher, in which texture is tracked."""
        left, top, right, bottom = face.box
        x, y = round((left + right - self._side) / 2), round((top + bottom - self._side) / 2)
        return Crop(x, y - round(0.1 * self._side), self._side, self._size)

    def extract(self, rgb: Bytes, crop: Crop) -> TexturePatch:
        """High-pass filtered grey values (size, size) uint8 of the window ``crop`` of the frame ``rgb`` (H, W, 3)."""
        import cv2

        height, width = rgb.shape[:2]
        x0, y0 = np.clip((crop.left, crop.top), 0, (width - 1, height - 1)).tolist()
        x1, y1 = np.clip((crop.left + crop.side, crop.top + crop.side), (x0 + 1, y0 + 1), (width, height)).tolist()
        grey = cv2.cvtColor(np.ascontiguousarray(rgb[y0:y1, x0:x1]), cv2.COLOR_RGB2GRAY)
        # Beyond the frame its edge is repeated.
        above, left = max(0, y0 - crop.top), max(0, x0 - crop.left)
        below, right = crop.side - above - (y1 - y0), crop.side - left - (x1 - x0)
        grey = cv2.copyMakeBorder(grey, above, below, left, right, cv2.BORDER_REPLICATE)
        if crop.size != crop.side:
            way = cv2.INTER_AREA if crop.side > 1.5 * crop.size else cv2.INTER_LINEAR
            grey = cv2.resize(grey, (crop.size, crop.size), interpolation=way)
        light = cv2.blur(grey, (2 * BACKGROUND + 1, 2 * BACKGROUND + 1))
        return cv2.addWeighted(grey, 1.0, light, -1.0, 128.0).astype(np.uint8, copy=False)

    def match(self, patch: TexturePatch, crop: Crop, expected: HeadFit) -> TextureMatches | None:
        """Find the corners of the keyframes whose view is nearest to the pose ``expected`` in a frame.

        ``patch`` is the texture of the frame in the window ``crop`` (`extract`).  Returns None if fewer than
        `MIN_CORNERS` corners are found.
        """
        if not self._keyframes:
            return None
        nearest = np.argsort([_difference(frame, expected) for frame in self._keyframes])[:ANCHORS]
        points, pixels, which = [], [], []
        for index in nearest:
            frame = self._keyframes[index]
            place, found = self._track_corners(frame, patch, crop, expected.rotation, expected.translation)
            points.append(self._views.points[frame.span][found])
            pixels.append(place[found])
            which.append(np.arange(frame.span.start, frame.span.stop)[found])
        index = np.concatenate(which)
        if len(index) < MIN_CORNERS:
            return None
        return TextureMatches(
            np.concatenate(points), np.concatenate(pixels).astype(np.float64), self._covariance[index], self._sigma
        )

    def needs_keyframe(self, fit: HeadFit) -> bool:
        """Whether the view of the fitted frame differs enough from those of all keyframes to become a keyframe."""
        if not self._keyframes:
            return True
        distance = min(_difference(frame, fit) for frame in self._keyframes)
        if len(self._keyframes) < KEYFRAMES:
            return distance > NEW_VIEW_ANGLE
        return distance > REPLACEMENT_RATIO * self._closest()[0]

    def add_keyframe(
        self,
        patch: TexturePatch,
        crop: Crop,
        matte: Float32,
        face: FaceLandmarks,
        fit: HeadFit,
        landmark_fit: HeadFit,
        information: Float64,
    ) -> None:
        """Add a keyframe with the corners detected in ``patch``, and run bundle adjustment.

        Nothing is added if there are too few corners; a full map drops one of its two most similar keyframes.

        Args:
            patch: texture in the window ``crop``.
            crop: window of the frame.
            matte: (size, size) float32 matte of the subject in the window.
            face: landmarks in the frame.
            fit: head fit of the frame.
            landmark_fit: head fit of the frame to its landmarks alone.
            information: (6, 6) information matrix of the pose of ``landmark_fit`` (`HeadFitter.pose_information`).
        """
        import cv2

        mask = self._rigid(matte, crop, face)
        found = cv2.goodFeaturesToTrack(patch, CORNERS, QUALITY, SPACING, mask=mask)
        if found is None or len(found) < MIN_CORNERS:
            return
        if len(self._keyframes) == KEYFRAMES:
            self._forget(self._closest()[1])
        corners = _to_source(np.asarray(found, np.float32)[:, 0], crop)
        known = len(self._views.points)
        count = len(corners)
        centre = np.array([self._camera.cx, self._camera.cy])
        frame = _Keyframe(
            patch,
            crop,
            landmark_fit,
            fit.rotation,
            fit.translation,
            corners,
            slice(known, known + count),
            information * LANDMARK_SHARE,
        )
        guesses = self._lift(corners, fit)
        views = len(self._keyframes)
        pixels = np.zeros((known + count, views + 1, 2))
        seen = np.zeros((known + count, views + 1), np.bool_)
        pixels[:known, :views], seen[:known, :views] = self._views.pixels, self._views.seen
        pixels[known:, views], seen[known:, views] = corners - centre, True
        self._views.points = np.concatenate([self._views.points, guesses])
        self._views.guesses = np.concatenate([self._views.guesses, guesses])
        self._covariance = np.concatenate([self._covariance, np.tile(np.eye(3), (count, 1, 1))])
        for view, other in enumerate(self._keyframes):
            place, hit = self._track_corners(other, patch, crop, fit.rotation, fit.translation)
            pixels[other.span, views], seen[other.span, views] = place - centre, hit
            place, hit = self._track_corners(frame, other.patch, other.crop, other.rotation, other.translation)
            pixels[frame.span, view], seen[frame.span, view] = place - centre, hit
        self._keyframes.append(frame)
        self._adjust(pixels, seen)

    def _closest(self) -> tuple[float, int]:
        """View difference of the two most similar keyframes, in radians, and the index of the later one."""
        return min(
            (_difference(frame, other), later)
            for later, frame in enumerate(self._keyframes)
            for other in self._keyframes[:later]
        )

    def _forget(self, index: int) -> None:
        """Remove the keyframe ``index`` and its corners."""
        gone = self._keyframes.pop(index).span
        stay = np.r_[0 : gone.start, gone.stop : len(self._views.points)]
        views = np.arange(len(self._keyframes) + 1) != index
        self._views.points, self._views.guesses = self._views.points[stay], self._views.guesses[stay]
        self._views.pixels = self._views.pixels[stay][:, views]
        self._views.seen = self._views.seen[stay][:, views]
        self._covariance = self._covariance[stay]
        for frame in self._keyframes[index:]:
            count = gone.stop - gone.start
            frame.span = slice(frame.span.start - count, frame.span.stop - count)

    def _adjust(self, pixels: Float64, seen: NDArray[np.bool_]) -> None:
        """Run bundle adjustment with the observations ``pixels`` (P, K, 2) where ``seen`` (P, K)."""
        frames, views = self._keyframes, self._views
        views.pixels, views.seen = pixels, seen
        views.rotations = np.stack([frame.rotation for frame in frames])
        views.translations = np.stack([frame.translation for frame in frames])
        views.prior_rotations = np.stack([frame.landmark_fit.rotation for frame in frames])
        views.prior_translations = np.stack([frame.landmark_fit.translation for frame in frames])
        views.information = np.stack([frame.information for frame in frames])
        self._covariance = views.adjust(self._camera.focal, self._sigma, ADJUSTMENTS)
        for frame, rotation, translation in zip(frames, views.rotations, views.translations, strict=True):
            frame.rotation, frame.translation = rotation, translation

    def _track_corners(
        self, frame: _Keyframe, patch: TexturePatch, crop: Crop, rotation: Float64, translation: Float64
    ) -> tuple[Float32, NDArray[np.bool_]]:
        """Positions (P, 2), in frame px, of the corners of ``frame`` in ``patch``, and which of them were found."""
        import cv2

        camera = self._camera
        points = self._views.points[frame.span]
        if len(points) == 0:
            return np.zeros((0, 2), np.float32), np.zeros(0, np.bool_)
        expected, _, _ = project(points, rotation[None], translation[None], camera.focal)
        expected = _to_window(expected[:, 0] + (camera.cx, camera.cy), crop)
        stood = _to_window(frame.corners, frame.crop)
        # The keyframe's patch warped to the expected pose: an affine map fitted to the expected corner positions.
        across = np.column_stack([stood, np.ones(len(stood))])
        steady = across.T @ across + np.diag([1.0, 1.0, 0.0])
        affine = np.linalg.solve(steady, across.T @ expected + np.eye(3, 2)).T
        template = cv2.warpAffine(frame.patch, affine, patch.shape[::-1], flags=cv2.INTER_LINEAR, borderValue=128)
        start = (across @ affine.T).astype(np.float32)
        until = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 12, 0.02)
        window, warm = (PATCH, PATCH), cv2.OPTFLOW_USE_INITIAL_FLOW
        there, hit, _ = cv2.calcOpticalFlowPyrLK(
            template, patch, start, expected.astype(np.float32), None, None, window, 1, until, warm
        )
        back, again, _ = cv2.calcOpticalFlowPyrLK(
            patch, template, there, start.copy(), None, None, window, 0, until, warm
        )
        returned = np.linalg.norm(back - start, axis=1) < ROUND_TRIP_TOLERANCE
        return _to_source(np.asarray(there, np.float32), crop), (hit[:, 0] > 0) & (again[:, 0] > 0) & returned

    def _rigid(self, matte: Float32, crop: Crop, face: FaceLandmarks) -> TexturePatch:
        """(size, size) uint8 mask: 255 where the window shows parts that move rigidly with the skull."""
        import cv2

        inside = cv2.erode((matte > 0.9).astype(np.uint8) * 255, np.ones((2 * EDGE + 1, 2 * EDGE + 1), np.uint8))
        soft = _to_window(face.points[self._soft, :2], crop)
        cv2.fillConvexPoly(inside, cv2.convexHull(np.round(soft).astype(np.int32)), 0)
        level = _to_window(face.points[list(MOUTH_CORNERS), :2], crop)[:, 1].min()
        inside[max(0, round(float(level))) :] = 0
        nose = _to_window(face.points[list(NOSE), :2], crop)
        cv2.fillConvexPoly(inside, cv2.convexHull(np.round(nose).astype(np.int32)), 255)
        return inside.astype(np.uint8, copy=False)

    def _lift(self, corners: Float32, fit: HeadFit) -> Float64:
        """Initial positions (P, 3) of corners in head space: at the depth of the nearest mesh vertex, plus hair."""
        camera = self._camera
        surface = self._surface + self._outside
        seen = surface @ fit.rotation.T + fit.translation
        pixels = camera.focal * seen[:, :2] / seen[:, 2:] + (camera.cx, camera.cy)
        front = seen[:, 2] < np.median(seen[:, 2])
        distance = np.linalg.norm(pixels[None, front] - corners[:, None], axis=2)
        depth = seen[front, 2][distance.argmin(1)]
        ray = np.column_stack([(corners - (camera.cx, camera.cy)) / camera.focal, np.ones(len(corners))])
        lifted: Float64 = (ray * depth[:, None] - fit.translation) @ fit.rotation
        return lifted


def _outward(points: Float32, centre: Float32) -> Float64:
    away = points - centre
    unit: Float64 = (away / np.linalg.norm(away, axis=1, keepdims=True)).astype(np.float64)
    return unit


def _difference(frame: _Keyframe, fit: _Keyframe | HeadFit) -> float:
    """View difference of two poses, in radians: angle between the lines of sight, plus a term for the distance."""
    one, other = frame.rotation.T @ frame.translation, fit.rotation.T @ fit.translation
    near, far = np.linalg.norm(one), np.linalg.norm(other)
    angle = np.arccos(np.clip(one @ other / (near * far), -1.0, 1.0))
    return float(angle + SCALE_ANGLE * abs(np.log(near / far)))


def _to_window(pixels: NDArray[np.floating], crop: Crop) -> Float64:
    """Convert frame px (pixel centres at +0.5) to OpenCV px of the window (pixel centres at whole numbers)."""
    places: Float64 = (pixels.astype(np.float64) - (crop.left, crop.top)) * (crop.size / crop.side) - 0.5
    return places


def _to_source(places: NDArray[np.floating], crop: Crop) -> Float32:
    return ((places + 0.5) * (crop.side / crop.size) + (crop.left, crop.top)).astype(np.float32)

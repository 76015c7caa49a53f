"""The texture of the whole head: corners of hair, ears and forehead, recognised from picture to picture.

Landmarks lie on the face and follow its expressions: a pose fitted to them alone is degrees off, which the face
hides and the crown shows.  What is printed on the rigid part of a head says how it turned.  A few keyframes hold the
corners of one person; each new picture is compared with the keyframes seen from about there (Lucas-Kanade on the
keyframe's picture, brought into the pose expected), never with the picture before, so nothing drifts.  Bundle
adjustment finds the corners' places in head space; landmarks say where head space is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from insta_runtime.head import HeadModel
from insta_runtime.types import Bytes, Float32, Float64

from .bundle import Views, project
from .crop import Crop
from .fit import HeadFit, Pinhole, Sightings
from .landmarks import FaceLandmarks

Picture = NDArray[np.uint8]

WINDOW = 2.4  # side of the window that is looked at, in face sizes
WINDOW_SIZE = 384  # px that it is shown at, at most
BACKGROUND = 15  # px of that window: what is darker or brighter than its surroundings, that wide, is texture
CORNER_SIGMA = 0.6  # px of a 512 picture: how exactly a corner is found again
CORNERS, SPACING, QUALITY = 64, 9, 0.001  # in a keyframe: how many, px between them, part of the best one's
EDGE = 5  # px inside the matte: the outline itself is no place on the head
PATCH = 21  # px
AGREE = 0.7  # px: there and back again must end where it began
KEYFRAMES = 16
ANCHORS = 2  # keyframes that a picture is compared with
NOVEL = np.deg2rad(3.0)  # a view that differs by more from all keyframes becomes one
WORTH = 1.5  # times as far from all others as the closest pair of keyframes: then, at the latest, one makes room
SCALE_ANGLE = 0.5  # rad that a change of distance by the factor e counts for
FEWEST = 12  # corners; with fewer the landmarks are left alone
LANDMARK_SHARE = 1.5  # weight of the landmarks of a keyframe against its corners, whose errors go together more
ADJUSTMENTS = 4
RIGID_ABOVE = 0.035  # m above the eyes, where the brows end
NOSE = (168, 193, 417, 122, 351, 196, 419, 3, 248, 51, 281, 45, 275, 4)  # landmarks around its rigid part
LEVEL = (61, 291)  # landmarks below which hair lies on the shoulders: the corners of the mouth
HAIR = 0.01  # m that it lies off the scalp, to begin with


@dataclass
class _Keyframe:
    """One view of the head; its pose as the map has it (rotation, translation) and as landmarks alone had it."""

    picture: Picture
    crop: Crop
    alone: HeadFit
    rotation: Float64
    translation: Float64
    corners: Float32  # (P, 2) px of the source picture
    span: slice  # its corners among all points
    information: Float64  # (6, 6)


class TextureMap:
    """What is known of the texture of one person's head.

    Args:
        head: the head model.
        shape: (S,) the person's identity code.
        camera: what takes the pictures.
        face_size: usual size of the face, px.
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
        self._soft = np.flatnonzero(places[:, 1] < eyes[1] + RIGID_ABOVE)  # landmarks of what moves by itself
        self._surface = rest[::3].astype(np.float64)
        self._outside = HAIR * np.repeat(head.masks["scalp"][::3, None], 3, 1) * _outward(rest[::3], eyes)
        self._views = Views(
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
        """The window around ``face``."""
        left, top, right, bottom = face.box
        x, y = round((left + right - self._side) / 2), round((top + bottom - self._side) / 2)
        return Crop(x, y - round(0.1 * self._side), self._side, self._size)

    def look(self, rgb: Bytes, crop: Crop) -> Picture:
        """(size, size) uint8: the texture in the window, freed of its light."""
        import cv2

        height, width = rgb.shape[:2]
        x0, y0 = np.clip((crop.left, crop.top), 0, (width - 1, height - 1)).tolist()
        x1, y1 = np.clip((crop.left + crop.side, crop.top + crop.side), (x0 + 1, y0 + 1), (width, height)).tolist()
        grey = cv2.cvtColor(np.ascontiguousarray(rgb[y0:y1, x0:x1]), cv2.COLOR_RGB2GRAY)
        # Beyond the picture its edge is repeated.
        above, left = max(0, y0 - crop.top), max(0, x0 - crop.left)
        below, right = crop.side - above - (y1 - y0), crop.side - left - (x1 - x0)
        grey = cv2.copyMakeBorder(grey, above, below, left, right, cv2.BORDER_REPLICATE)
        if crop.size != crop.side:
            way = cv2.INTER_AREA if crop.side > 1.5 * crop.size else cv2.INTER_LINEAR
            grey = cv2.resize(grey, (crop.size, crop.size), interpolation=way)
        light = cv2.blur(grey, (2 * BACKGROUND + 1, 2 * BACKGROUND + 1))
        return cv2.addWeighted(grey, 1.0, light, -1.0, 128.0).astype(np.uint8, copy=False)

    def find(self, picture: Picture, crop: Crop, expected: HeadFit) -> Sightings | None:
        """The corners of the keyframes seen from about where ``expected`` sees the head; None if too few are there."""
        if not self._keyframes:
            return None
        nearest = np.argsort([_difference(frame, expected) for frame in self._keyframes])[:ANCHORS]
        points, pixels, which = [], [], []
        for index in nearest:
            frame = self._keyframes[index]
            place, found = self._search(frame, picture, crop, expected.rotation, expected.translation)
            points.append(self._views.points[frame.span][found])
            pixels.append(place[found])
            which.append(np.arange(frame.span.start, frame.span.stop)[found])
        index = np.concatenate(which)
        if len(index) < FEWEST:
            return None
        return Sightings(
            np.concatenate(points), np.concatenate(pixels).astype(np.float64), self._covariance[index], self._sigma
        )

    def is_novel(self, fit: HeadFit) -> bool:
        """Whether this view would be worth a keyframe."""
        if not self._keyframes:
            return True
        distance = min(_difference(frame, fit) for frame in self._keyframes)
        if len(self._keyframes) < KEYFRAMES:
            return distance > NOVEL
        return distance > WORTH * self._closest()[0]

    def add(
        self,
        picture: Picture,
        crop: Crop,
        matte: Float32,
        face: FaceLandmarks,
        fit: HeadFit,
        alone: HeadFit,
        information: Float64,
    ) -> None:
        """Make a keyframe.

        ``matte`` (size, size) is the person's in the window, ``fit`` the pose; ``alone`` is the pose by the landmarks
        alone, known with ``information`` (6, 6).
        """
        import cv2

        mask = self._rigid(matte, crop, face)
        found = cv2.goodFeaturesToTrack(picture, CORNERS, QUALITY, SPACING, mask=mask)
        if found is None or len(found) < FEWEST:
            return
        if len(self._keyframes) == KEYFRAMES:
            self._forget(self._closest()[1])
        corners = _to_source(np.asarray(found, np.float32)[:, 0], crop)
        known = len(self._views.points)
        count = len(corners)
        centre = np.array([self._camera.cx, self._camera.cy])
        frame = _Keyframe(
            picture,
            crop,
            alone,
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
            place, hit = self._search(other, picture, crop, fit.rotation, fit.translation)
            pixels[other.span, views], seen[other.span, views] = place - centre, hit
            place, hit = self._search(frame, other.picture, other.crop, other.rotation, other.translation)
            pixels[frame.span, view], seen[frame.span, view] = place - centre, hit
        self._keyframes.append(frame)
        self._adjust(pixels, seen)

    def _closest(self) -> tuple[float, int]:
        """How far apart the two keyframes are that differ least, and the later of them."""
        return min(
            (_difference(frame, other), later)
            for later, frame in enumerate(self._keyframes)
            for other in self._keyframes[:later]
        )

    def _forget(self, index: int) -> None:
        """Drop a keyframe and its corners."""
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
        frames, views = self._keyframes, self._views
        views.pixels, views.seen = pixels, seen
        views.rotations = np.stack([frame.rotation for frame in frames])
        views.translations = np.stack([frame.translation for frame in frames])
        views.prior_rotations = np.stack([frame.alone.rotation for frame in frames])
        views.prior_translations = np.stack([frame.alone.translation for frame in frames])
        views.information = np.stack([frame.information for frame in frames])
        self._covariance = views.adjust(self._camera.focal, self._sigma, ADJUSTMENTS)
        for frame, rotation, translation in zip(frames, views.rotations, views.translations, strict=True):
            frame.rotation, frame.translation = rotation, translation

    def _search(
        self, frame: _Keyframe, picture: Picture, crop: Crop, rotation: Float64, translation: Float64
    ) -> tuple[Float32, NDArray[np.bool_]]:
        """Where the corners of ``frame`` lie in ``picture``, (P, 2) px of the source picture, and which were found."""
        import cv2

        camera = self._camera
        points = self._views.points[frame.span]
        if len(points) == 0:
            return np.zeros((0, 2), np.float32), np.zeros(0, np.bool_)
        expected, _, _ = project(points, rotation[None], translation[None], camera.focal)
        expected = _to_window(expected[:, 0] + (camera.cx, camera.cy), crop)
        stood = _to_window(frame.corners, frame.crop)
        # The keyframe's picture as it would look from here: turned, scaled and sheared as its corners are.
        across = np.column_stack([stood, np.ones(len(stood))])
        steady = across.T @ across + np.diag([1.0, 1.0, 0.0])
        affine = np.linalg.solve(steady, across.T @ expected + np.eye(3, 2)).T
        template = cv2.warpAffine(frame.picture, affine, picture.shape[::-1], flags=cv2.INTER_LINEAR, borderValue=128)
        start = (across @ affine.T).astype(np.float32)
        until = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 12, 0.02)
        patch, warm = (PATCH, PATCH), cv2.OPTFLOW_USE_INITIAL_FLOW
        there, hit, _ = cv2.calcOpticalFlowPyrLK(
            template, picture, start, expected.astype(np.float32), None, None, patch, 1, until, warm
        )
        back, again, _ = cv2.calcOpticalFlowPyrLK(
            picture, template, there, start.copy(), None, None, patch, 0, until, warm
        )
        returned = np.linalg.norm(back - start, axis=1) < AGREE
        return _to_source(np.asarray(there, np.float32), crop), (hit[:, 0] > 0) & (again[:, 0] > 0) & returned

    def _rigid(self, matte: Float32, crop: Crop, face: FaceLandmarks) -> Picture:
        """(size, size) uint8: 255 where the picture shows what moves with the skull."""
        import cv2

        inside = cv2.erode((matte > 0.9).astype(np.uint8) * 255, np.ones((2 * EDGE + 1, 2 * EDGE + 1), np.uint8))
        soft = _to_window(face.points[self._soft, :2], crop)
        cv2.fillConvexPoly(inside, cv2.convexHull(np.round(soft).astype(np.int32)), 0)
        level = _to_window(face.points[list(LEVEL), :2], crop)[:, 1].min()
        inside[max(0, round(float(level))) :] = 0
        nose = _to_window(face.points[list(NOSE), :2], crop)
        cv2.fillConvexPoly(inside, cv2.convexHull(np.round(nose).astype(np.int32)), 255)
        return inside.astype(np.uint8, copy=False)

    def _lift(self, corners: Float32, fit: HeadFit) -> Float64:
        """(P, 3) where in head space the corners lie: as far away as the mesh, with some hair, that is nearest."""
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
    """How differently ``frame`` and ``fit`` see the head, rad: between the lines of sight, and by distance."""
    one, other = frame.rotation.T @ frame.translation, fit.rotation.T @ fit.translation
    near, far = np.linalg.norm(one), np.linalg.norm(other)
    angle = np.arccos(np.clip(one @ other / (near * far), -1.0, 1.0))
    return float(angle + SCALE_ANGLE * abs(np.log(near / far)))


def _to_window(pixels: NDArray[np.floating], crop: Crop) -> Float64:
    """Picture px (centres at +0.5) to OpenCV's px of the window (centres at whole numbers)."""
    places: Float64 = (pixels.astype(np.float64) - (crop.left, crop.top)) * (crop.size / crop.side) - 0.5
    return places


def _to_source(places: NDArray[np.floating], crop: Crop) -> Float32:
    return ((places + 0.5) * (crop.side / crop.size) + (crop.left, crop.top)).astype(np.float32)

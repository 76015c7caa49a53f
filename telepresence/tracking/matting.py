"""The foreground matte: which pixels belong to the head that is learned.

Alpha is the product of the person's matte (MediaPipe's selfie segmenter on a window around the face) and a ramp over
the neck: a height field of the rest mesh, drawn with the posed mesh, that fades from under the chin to the collar.
So a torso that does not move with the head is left out, at the same place of the body in every picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadModel, HeadRig
from insta_runtime.render.raster import rasterise
from insta_runtime.types import Bytes, Camera, Float32, HeadState

from .crop import Crop
from .landmarks import FaceLandmarks
from .models import import_mediapipe, quietly, segmenter_path

WINDOW = 2.6  # side of the window that is segmented, in face sizes
WINDOW_SIZE = 256  # px that the segmenter looks at
RAMP_SIZE = 96  # px of the height field
CHIN = 152  # landmark
RAMP_TOP, RAMP_BOTTOM = 0.025, 0.055  # m below the chin: alpha 1 and 0
TILT = 0.35  # m that the ramp rises for each metre behind the chin: collars stand higher at the nape
BELOW = (0.0, 0.03)  # m above the chin: where hair beside the face turns into what lies beside the neck
LATERAL = (0.010, 0.035)  # m beside the mesh, below the chin: alpha 1 and 0
UPPER = 0.06  # m above the chin: higher triangles cannot hide the neck


class Matter:
    """Mattes the pictures of one person.  Close it when done."""

    def __init__(self, head: HeadModel, shape: Float32, models: Path | None = None, *, live: bool) -> None:
        self._mediapipe = mediapipe = import_mediapipe()
        vision = mediapipe.tasks.vision
        base = mediapipe.tasks.BaseOptions(model_asset_path=str(segmenter_path(models, fast=live)))
        options = vision.ImageSegmenterOptions(
            base_options=base,
            running_mode=vision.RunningMode.IMAGE,
            output_confidence_masks=True,
            output_category_mask=False,
        )
        with quietly():
            self._segmenter = vision.ImageSegmenter.create_from_options(options)
            self._segment(np.zeros((WINDOW_SIZE, WINDOW_SIZE, 3), np.uint8))
        self.ramp = NeckRamp(head, shape)

    def alpha(self, rgb: Bytes, face: FaceLandmarks, crop: Crop, camera: Camera, state: HeadState) -> Bytes:
        """Person's matte x neck ramp of the crop: (size, size) uint8.

        ``rgb`` is the whole picture, ``face`` in its pixels; ``camera`` and ``state`` are those of the crop.
        """
        import cv2

        person = self._person(rgb, face, crop)
        low = self.ramp.draw(state, camera.scaled(RAMP_SIZE, RAMP_SIZE))
        ramp = cv2.resize(low, (crop.size, crop.size), interpolation=cv2.INTER_LINEAR)
        return (person * ramp * 255.0 + 0.5).astype(np.uint8)

    def close(self) -> None:
        self._segmenter.close()

    def _segment(self, window: NDArray[Any]) -> Float32:
        """(WINDOW_SIZE, WINDOW_SIZE, 3) uint8 to the person's probability, same size."""
        mediapipe = self._mediapipe
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(window))
        mask = self._segmenter.segment(image).confidence_masks[0].numpy_view()  # (H, W, 1), gone with the image
        return np.array(mask, dtype=np.float32).reshape(WINDOW_SIZE, WINDOW_SIZE)

    def _person(self, rgb: Bytes, face: FaceLandmarks, crop: Crop) -> Float32:
        """(size, size) float32 in [0, 1]: the component of the segmenter's matte that holds the face."""
        import cv2

        height, width = rgb.shape[:2]
        left, top, right, bottom = face.box
        side = min(WINDOW * face.face_size, width, height)
        x = int(np.clip((left + right - side) / 2, 0, width - side))
        y = int(np.clip((top + bottom - side) / 2, 0, height - side))
        side = int(side)
        window = cv2.resize(rgb[y : y + side, x : x + side], (WINDOW_SIZE, WINDOW_SIZE), interpolation=cv2.INTER_AREA)
        matte = self._segment(window)
        _, labels = cv2.connectedComponents((matte > 0.1).astype(np.uint8))
        middle = (((left + right) / 2 - x) / side, ((top + bottom) / 2 - y) / side)
        column, row = (int(np.clip(part * WINDOW_SIZE, 0, WINDOW_SIZE - 1)) for part in middle)
        matte = np.where(labels == labels[row, column], matte, 0.0).astype(np.float32)
        # From pixels of the window to pixels of the crop; both have their centres at +0.5.
        scale = (side / WINDOW_SIZE) * (crop.size / crop.side)
        shift_x, shift_y = ((x - crop.left) * crop.size / crop.side, (y - crop.top) * crop.size / crop.side)
        to_crop = np.array(
            [[scale, 0.0, shift_x + (scale - 1) / 2], [0.0, scale, shift_y + (scale - 1) / 2]], dtype=np.float64
        )
        warped = cv2.warpAffine(matte, to_crop, (crop.size, crop.size), flags=cv2.INTER_LINEAR)
        return np.clip(warped, 0.0, 1.0).astype(np.float32)


class NeckRamp:
    """Where below the chin of one person the head that is learned ends."""

    def __init__(self, head: HeadModel, shape: Float32) -> None:
        self._rig = HeadRig(head)
        self._shape = shape
        rest = head.template + np.tensordot(shape, head.shape_dirs, 1)
        _, chin_y, chin_z = _landmark(head, rest, CHIN)
        above = rest[:, 1] - chin_y
        self._height = torch.from_numpy((above - TILT * (chin_z - rest[:, 2]))[:, None].astype(np.float32))  # (V, 1) m
        low = above[head.faces].min(1) < UPPER
        self._faces = torch.from_numpy(head.faces[low & (head.face_group == 0)])

    def draw(self, state: HeadState, camera: Camera) -> Float32:
        """(H, W) float32 in [0, 1]: 1 on the head, fading to 0 at the collar."""
        import cv2

        vertices = self._rig.pose(self._shape, state).vertices
        turn = torch.from_numpy(rotation_matrix(state.rotation).astype(np.float32))
        posed = vertices @ turn.T + torch.from_numpy(state.translation)
        raster = rasterise(posed, self._faces, camera)
        if not bool(raster.mask.any()):
            return np.ones((camera.height, camera.width), np.float32)
        field = raster.interpolate(self._height)[..., 0].numpy()
        covered = raster.mask.numpy()
        distance, nearest = cv2.distanceTransformWithLabels(
            (~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        pixel_size = float(state.translation[2]) / camera.fx  # m
        # Beyond the mesh a pixel takes the height of the nearest pixel on it, and goes on along the head's up axis.
        rows, columns = np.indices(covered.shape, dtype=np.float32)
        along_up = (columns * float(turn[0, 1]) + rows * float(turn[1, 1])) * pixel_size
        of_label = np.zeros(int(nearest.max()) + 1, np.float32)
        of_label[nearest[covered]] = (field - along_up)[covered]
        height = of_label[nearest] + along_up
        metres = distance * pixel_size
        down = _fade(-height, RAMP_TOP, RAMP_BOTTOM)
        # Beside the neck lie shoulders and collars; beside the cheeks hair, which stays.
        beside = _fade(metres, *LATERAL)
        below = _fade(height, *BELOW)
        ramp = down * (1.0 - below * (1.0 - beside))
        return cv2.GaussianBlur(ramp, (0, 0), camera.height / 200).astype(np.float32)


def _landmark(head: HeadModel, vertices: Float32, landmark: int) -> tuple[float, float, float]:
    """Where ``landmark`` lies on ``vertices`` (V, 3)."""
    assert head.embedding is not None
    corners = vertices[head.faces[head.embedding.face[landmark]]]
    x, y, z = (float(value) for value in head.embedding.bary[landmark] @ corners)
    return x, y, z


def _fade(value: NDArray[np.float32], one: float, zero: float) -> NDArray[np.float32]:
    """1 up to ``one``, 0 from ``zero`` on, smooth between."""
    part = np.clip((zero - value) / (zero - one), 0.0, 1.0)
    return (part * part * (3.0 - 2.0 * part)).astype(np.float32)

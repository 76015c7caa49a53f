"""The face models run by MediaPipe's own library, which sends usage data to its vendor whenever a task is closed.

The package description of mediapipe 1.2 says so, and there is no option to disable it.  When a task is closed, the
library looks up the name of a host of its vendor and sends to it.  Without an answer from the name server, closing
takes ten seconds.
"""

from __future__ import annotations

import functools
import importlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes, Float32

from .face_mesh import LANDMARKS
from .native_stderr import silence_native_stderr
from .selfie_segmenter import MATTE_SIZE

SYSTEM_PACKAGES = "libegl1 libgles2 libgl1 libglib2.0-0 libxcb1"
"""Names, separated by spaces, of the Debian packages with the system libraries that mediapipe needs."""

_log = logging.getLogger(__name__)


class MediaPipeFaceMesh:
    """Face landmarker run by MediaPipe's own library, for one face (a `FaceMeshModel`); call `close` at the end."""

    def __init__(self, task: Path, *, live: bool) -> None:
        """Load ``face_landmarker.task``; `track` requires ``live``.  Raises UserError if mediapipe cannot be loaded."""
        self._mediapipe = import_mediapipe()
        vision = self._mediapipe.tasks.vision
        with silence_native_stderr():
            self._still = self._landmarker(task, vision.RunningMode.IMAGE)
            self._video = self._landmarker(task, vision.RunningMode.VIDEO) if live else None
            self.detect(np.zeros((64, 64, 3), np.uint8))
        _warn_of_reports()

    def detect(self, rgb: Bytes) -> tuple[Float32, Float32] | None:
        """Landmarks (478, 3) in px and scores (52,) of the face in an image; None: no face (`FaceMeshModel.detect`)."""
        return self._result(self._still.detect(_image(self._mediapipe, rgb)), rgb)

    def track(self, rgb: Bytes, seconds: float) -> tuple[Float32, Float32] | None:
        """Landmarks (478, 3) in px and scores (52,) in the next video frame; None: no face (`FaceMeshModel.track`)."""
        assert self._video is not None
        return self._result(self._video.detect_for_video(_image(self._mediapipe, rgb), round(seconds * 1e3)), rgb)

    def close(self) -> None:
        """Close MediaPipe's tasks; the library then sends usage data to its vendor."""
        for landmarker in (self._still, self._video):
            if landmarker is not None:
                landmarker.close()

    def _landmarker(self, task: Path, mode: Any) -> Any:
        vision = self._mediapipe.tasks.vision
        return vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=self._mediapipe.tasks.BaseOptions(model_asset_path=str(task)),
                running_mode=mode,
                num_faces=1,
                output_face_blendshapes=True,
            )
        )

    def _result(self, result: Any, rgb: Bytes) -> tuple[Float32, Float32] | None:
        if not result.face_landmarks:
            return None
        height, width = rgb.shape[:2]
        raw = np.array([(point.x, point.y, point.z) for point in result.face_landmarks[0]], dtype=np.float32)
        points = raw * np.array([width, height, width], np.float32)
        if points.shape != (LANDMARKS, 3) or not np.isfinite(points).all():
            return None
        return points, np.array([category.score for category in result.face_blendshapes[0]], np.float32)


class MediaPipeSegmenter:
    """Selfie segmenter run by MediaPipe's own library (a `PersonSegmenter`); call `close` at the end."""

    def __init__(self, path: Path) -> None:
        """Load a ``.tflite`` file of the selfie segmenter.  Raises UserError if mediapipe cannot be loaded."""
        self._mediapipe = mediapipe = import_mediapipe()
        vision = mediapipe.tasks.vision
        options = vision.ImageSegmenterOptions(
            base_options=mediapipe.tasks.BaseOptions(model_asset_path=str(path)),
            running_mode=vision.RunningMode.IMAGE,
            output_confidence_masks=True,
            output_category_mask=False,
        )
        with silence_native_stderr():
            self._segmenter = vision.ImageSegmenter.create_from_options(options)
            self.segment(np.zeros((MATTE_SIZE, MATTE_SIZE, 3), np.uint8))
        _warn_of_reports()

    def segment(self, rgb: Bytes) -> Float32:
        """Probability that a pixel shows a person, (256, 256) float32, for an RGB image (256, 256, 3) uint8."""
        masks = self._segmenter.segment(_image(self._mediapipe, rgb)).confidence_masks
        mask = masks[0].numpy_view()  # (H, W, 1), memory of the result
        return np.array(mask, dtype=np.float32).reshape(MATTE_SIZE, MATTE_SIZE)

    def close(self) -> None:
        """Close MediaPipe's task; the library then sends usage data to its vendor."""
        self._segmenter.close()


def import_mediapipe() -> Any:
    """Import ``mediapipe`` and return the module.  Raises UserError, naming packages to install, if that fails."""
    try:
        return importlib.import_module("mediapipe")
    except ModuleNotFoundError as error:
        raise UserError(
            f"run.face_models=mediapipe needs mediapipe ({error}): pip install 'mediapipe==1.2.*', "
            "or set run.face_models to litert"
        ) from None
    except (OSError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"mediapipe cannot be loaded ({reason}): apt-get install {SYSTEM_PACKAGES}, "
            "or set run.face_models to litert"
        ) from None


@functools.cache
def _warn_of_reports() -> None:
    """Log a warning, once per process, that this library sends usage data to its vendor."""
    _log.warning("run.face_models=mediapipe: MediaPipe's library reports its use to its vendor (docs/security.md)")


def _image(mediapipe: Any, rgb: Bytes) -> Any:
    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(rgb))

"""Face models of MediaPipe: interfaces, location of the model files, and choice of the library that runs them.

LiteRT runs them by default.  MediaPipe's own library gives the same landmarks and mattes, but it sends usage data to
its vendor whenever a task is closed, so it is used only if the setting ``run.face_models`` is ``mediapipe``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes, Float32

from .model_files import landmarker_path, segmenter_path


class FaceMeshModel(Protocol):
    """Interface of a model that finds landmarks and blendshape scores of one face.  Not thread-safe."""

    def detect(self, rgb: Bytes) -> tuple[Float32, Float32] | None:
        """Find one face in an RGB image (H, W, 3) uint8: landmarks (478, 3) and blendshape scores (52,) in [0, 1].

        x and y are in pixels, z (negative towards the camera) at the same scale.  Returns None if there is no face.
        """
        ...

    def track(self, rgb: Bytes, seconds: float) -> tuple[Float32, Float32] | None:
        """Like `detect`, for the next frame of a video: follows the face, and smooths the landmarks over time.

        ``seconds`` is the time of the frame on any clock; it must be greater than in the previous call.
        """
        ...

    def close(self) -> None:
        """Release the models; the object must not be used afterwards."""
        ...


class PersonSegmenter(Protocol):
    """Interface of a model that separates a person from the background of a small image.  Not thread-safe."""

    def segment(self, rgb: Bytes) -> Float32:
        """Probability that a pixel shows a person, (256, 256) float32, for an RGB image (256, 256, 3) uint8."""
        ...

    def close(self) -> None:
        """Release the model; the object must not be used afterwards."""
        ...


@dataclass(frozen=True)
class FaceModels:
    """Loader of the face models: location of their files, and the library that runs them.

    folder: folder that is searched for the model files before the cache; missing files are downloaded.
    library: ``litert``, or ``mediapipe``, which sends usage data to its vendor.
    """

    folder: Path | None = None
    library: str = "litert"

    def landmarker(self) -> Path:
        """Path of ``face_landmarker.task``, downloaded if missing.  Raises UserError if it is not available."""
        return landmarker_path(self.folder)

    def face_mesh(self, *, live: bool) -> FaceMeshModel:
        """Load the face landmarker; ``live`` must be True if `FaceMeshModel.track` will be called.

        Raises UserError if the file or the library is not available.
        """
        return load_face_mesh(self.landmarker(), self.library, live=live)

    def segmenter(self, *, live: bool) -> PersonSegmenter:
        """Load the selfie segmenter; ``live`` prefers a faster model.  Raises UserError like `face_mesh`."""
        path = segmenter_path(self.folder, fast=live)
        _check_opencv()
        if self.library == "mediapipe":
            from .mediapipe_models import MediaPipeSegmenter

            return MediaPipeSegmenter(path)
        from .selfie_segmenter import SelfieSegmenter

        return SelfieSegmenter(path)


def load_face_mesh(task: Path, library: str, *, live: bool) -> FaceMeshModel:
    """Load the face landmarker from the ``.task`` file ``task`` with ``library`` (``litert`` or ``mediapipe``).

    ``live`` must be True if `FaceMeshModel.track` will be called.  Raises UserError if the library cannot be loaded.
    """
    _check_opencv()
    if library == "mediapipe":
        from .mediapipe_models import MediaPipeFaceMesh

        return MediaPipeFaceMesh(task, live=live)
    from .face_mesh import FaceMesh

    return FaceMesh(task)


def _check_opencv() -> None:
    """Raise UserError that says what to install if OpenCV cannot be loaded."""
    try:
        importlib.import_module("cv2")
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"tracking needs OpenCV ({reason}): pip install --force-reinstall --no-deps opencv-python-headless, "
            "or use --source synthetic"
        ) from None

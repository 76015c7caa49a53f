"""Face models of MediaPipe: which files they are, and which library runs them.

LiteRT runs them by default.  MediaPipe's own library gives the same landmarks and mattes, but it reports its use to its
vendor whenever a task is closed, so it is used only if the setting ``run.face_models`` says so.
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
    """Face landmarks and blendshape scores of one face.  Belongs to the thread that calls it."""

    def detect(self, rgb: Bytes) -> tuple[Float32, Float32] | None:
        """Landmarks (478, 3) in pixels and scores (52,) of a face in an image (H, W, 3) uint8; None: no face."""
        ...

    def track(self, rgb: Bytes, seconds: float) -> tuple[Float32, Float32] | None:
        """Like `detect`, for the next frame of a video: follows the face, and smooths the landmarks over time.

        ``seconds`` is the time of the frame on any clock; it must grow from call to call.
        """
        ...

    def close(self) -> None:
        """Release the models."""
        ...


class PersonSegmenter(Protocol):
    """Segmentation of a person in a small image.  Belongs to the thread that calls it."""

    def segment(self, rgb: Bytes) -> Float32:
        """Probability of a person, (256, 256) float32, in each pixel of an image (256, 256, 3) uint8."""
        ...

    def close(self) -> None:
        """Release the model."""
        ...


@dataclass(frozen=True)
class FaceModels:
    """Where the face models are, and what runs them.

    folder: folder of the model files; None: they are taken from the cache or downloaded.
    library: ``litert``, or ``mediapipe``, which reports its use to its vendor.
    """

    folder: Path | None = None
    library: str = "litert"

    def landmarker(self) -> Path:
        """Path of the face landmarker's file.  Raises UserError if it is not available."""
        return landmarker_path(self.folder)

    def face_mesh(self, *, live: bool) -> FaceMeshModel:
        """Load the face landmarker; ``live`` if `FaceMeshModel.track` will be called.

        Raises UserError if the file or the library is not available.
        """
        return load_face_mesh(self.landmarker(), self.library, live=live)

    def segmenter(self, *, live: bool) -> PersonSegmenter:
        """Load the selfie segmenter; ``live`` prefers the faster model.  Raises UserError like `face_mesh`."""
        path = segmenter_path(self.folder, fast=live)
        _check_opencv()
        if self.library == "mediapipe":
            from .mediapipe_models import MediaPipeSegmenter

            return MediaPipeSegmenter(path)
        from .selfie_segmenter import SelfieSegmenter

        return SelfieSegmenter(path)


def load_face_mesh(task: Path, library: str, *, live: bool) -> FaceMeshModel:
    """Load the face landmarker from the file ``task``, as `FaceModels.face_mesh` does."""
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

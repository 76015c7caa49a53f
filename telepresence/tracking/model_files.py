"""MediaPipe's model files: search path, download, and verification by SHA-256.

A file is searched for in the given folder (``--models`` or ``TELEPRESENCE_MODELS``), then in the user's cache; if it is
in neither, it is downloaded to the cache from the vendor's public address.  Every file used has a known SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from insta_runtime.errors import UserError
from insta_runtime.files import atomic_file

VENDOR = "https://storage.googleapis.com/mediapipe-models/"
"""Base address of MediaPipe's public model files."""
DOWNLOAD_TIMEOUT = 30.0
"""Time without data, in seconds, after which a download fails."""


@dataclass(frozen=True)
class ModelFile:
    """A model file: name, expected SHA-256, and URL from which it is downloaded (None: cannot be downloaded)."""

    name: str
    sha256: str
    address: str | None = None


LANDMARKER = ModelFile(
    "face_landmarker.task",
    "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    VENDOR + "face_landmarker/face_landmarker/float16/1/face_landmarker.task",
)
"""Model file of MediaPipe's face landmarker: face detector, face mesh and blendshapes."""
SEGMENTER = ModelFile(
    "selfie_segmenter.tflite",
    "191ac9529ae506ee0beefa6b2c945a172dab9d07d1e802a290a4e4038226658b",
    VENDOR + "image_segmenter/selfie_segmenter/float16/1/selfie_segmenter.tflite",
)
"""Model file of MediaPipe's selfie segmenter, for square images."""
SEGMENTER_SQUARE = ModelFile(
    "selfie_segmentation.tflite",
    "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
)
"""Model file of MediaPipe's selfie segmenter under its older name, for square images."""
SEGMENTER_LANDSCAPE = ModelFile(
    "selfie_segmentation_landscape.tflite",
    "a77d03f4659b9f6b6c1f5106947bf40e99d7655094b6527f214ea7d451106edd",
)
"""Model file of MediaPipe's smaller and faster selfie segmenter, for landscape images."""
VISION = ModelFile(
    "mediapipe-tasks-vision-0.10.35.tgz",
    "84597a25e13d123b5f4cbe768bb72e97a2c28c7a465f0ace287d8cbe5246bff0",
    "https://registry.npmjs.org/@mediapipe/tasks-vision/-/tasks-vision-0.10.35.tgz",
)
"""MediaPipe's npm package, which tracks faces in a browser."""


def model_cache() -> Path:
    """Folder in the user's cache in which downloaded model files are stored."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("telepresence")) / "models"


def landmarker_path(models: Path | None = None) -> Path:
    """Path of the face landmarker's model, downloaded if missing.  Raises UserError if it is not available.

    ``models`` is a folder that is searched before the cache; None: the environment variable ``TELEPRESENCE_MODELS``.
    """
    return _find((LANDMARKER,), models)


def segmenter_path(models: Path | None = None, *, fast: bool = False) -> Path:
    """Path of the selfie segmenter's model, downloaded if missing.  Raises UserError if it is not available.

    ``models`` is as for `landmarker_path`.  With ``fast`` the smaller landscape model is preferred, if present; on a
    face crop it is equally accurate.
    """
    square = (SEGMENTER, SEGMENTER_SQUARE)
    return _find((SEGMENTER_LANDSCAPE, *square) if fast else (*square, SEGMENTER_LANDSCAPE), models)


def vision_path(models: Path | None = None) -> Path:
    """Path of MediaPipe's npm package for browsers, downloaded if missing.  Raises UserError if it is not available.

    ``models`` is as for `landmarker_path`.
    """
    return _find((VISION,), models)


def _find(candidates: tuple[ModelFile, ...], models: Path | None) -> Path:
    given = models or (Path(os.environ["TELEPRESENCE_MODELS"]) if os.environ.get("TELEPRESENCE_MODELS") else None)
    if given is not None and not given.is_dir():
        raise UserError(f"the folder of model files {given} does not exist: correct --models or TELEPRESENCE_MODELS")
    for folder in filter(None, (given, model_cache())):
        for model in candidates:
            path = folder / model.name
            if path.is_file():
                return _checked(path, model)
    published = next(model for model in candidates if model.address is not None)
    return _download(published, model_cache() / published.name)


def _checked(path: Path, model: ModelFile) -> Path:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    if digest != model.sha256:
        raise UserError(
            f"{path} is not the expected {model.name} (its SHA-256 differs): delete it, and it is downloaded again"
        )
    return path


def _download(model: ModelFile, path: Path) -> Path:
    assert model.address is not None
    try:
        with urllib.request.urlopen(model.address, timeout=DOWNLOAD_TIMEOUT) as answer:  # noqa: S310 (a constant https)
            data: bytes = answer.read()
    except (OSError, ValueError):
        raise UserError(
            f"{model.name} is missing and cannot be downloaded: download {model.address} to {path}, "
            "or give its folder with --models; --source synthetic needs no model"
        ) from None
    if hashlib.sha256(data).hexdigest() != model.sha256:
        raise UserError(f"the downloaded {model.name} is damaged (its SHA-256 differs): try again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, concurrent=True, mode=0o600) as file:
            file.write(data)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another folder with --models") from None
    return path

"""Model files: search path, verification, and the error if they are not available."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from insta_runtime.errors import UserError
from telepresence.tracking.model_files import landmarker_path, model_cache, segmenter_path


@pytest.fixture(autouse=True)
def _no_files_no_network(monkeypatch, tmp_path):
    monkeypatch.delenv("TELEPRESENCE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no server listens there


@pytest.mark.parametrize("find", [landmarker_path, segmenter_path])
def test_without_files_and_network_a_one_line_error_tells_what_to_do(find):
    with pytest.raises(UserError) as error:
        find()
    text = str(error.value)
    assert "\n" not in text
    assert "--source synthetic" in text
    assert str(model_cache()) in text
    assert "face_landmarker.task" in text or "selfie_segmenter.tflite" in text


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--models"):
        landmarker_path(tmp_path / "nowhere")


def test_a_wrong_file_is_refused(tmp_path):
    (tmp_path / "face_landmarker.task").write_bytes(b"not it")
    with pytest.raises(UserError, match="SHA-256"):
        landmarker_path(tmp_path)


def test_files_of_a_given_folder_are_used(models, monkeypatch):
    assert landmarker_path(models).parent == models
    assert segmenter_path(models).name == "selfie_segmentation.tflite"
    assert segmenter_path(models, fast=True).name == "selfie_segmentation_landscape.tflite"
    monkeypatch.setenv("TELEPRESENCE_MODELS", str(models))
    assert landmarker_path().parent == models


def test_files_of_the_cache_are_used(models):
    model_cache().mkdir(parents=True)
    shutil.copy(models / "face_landmarker.task", model_cache())
    assert landmarker_path() == model_cache() / "face_landmarker.task"


def test_missing_system_libraries_are_named(tmp_path):
    """With a mediapipe that cannot load its libraries, as on a machine without libEGL."""
    (tmp_path / "mediapipe.py").write_text(
        "raise OSError('libEGL.so.1: cannot open shared object file: No such file or directory')"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from insta_runtime.errors import UserError\n"
        "from telepresence.tracking.mediapipe_models import import_mediapipe\n"
        "try:\n    import_mediapipe()\nexcept UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert "libegl1 libgles2 libgl1 libglib2.0-0 libxcb1" in done.stdout
    assert done.stdout.count("\n") == 1


def test_importing_tracking_loads_no_mediapipe():
    code = (
        "import sys\n"
        "import telepresence.tracking.tracker, telepresence.measure.offline.video_tracking\n"
        "print([name for name in ('mediapipe', 'cv2', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == "[]"

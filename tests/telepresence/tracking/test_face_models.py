"""Face models by LiteRT: the results of MediaPipe's own library, odd images, and errors with one line."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from insta_runtime.errors import UserError
from telepresence.config import load_config
from telepresence.tracking.face_mesh import LANDMARKS, FaceMesh, OneEuroFilter
from telepresence.tracking.face_models import FaceModels
from telepresence.tracking.landmarks import BLENDSHAPES, FaceLandmarker
from telepresence.tracking.litert import LiteRtModel
from telepresence.tracking.selfie_segmenter import MATTE_SIZE, SelfieSegmenter
from tests.support.face_results import results
from tests.support.without_network import without_network

CLIPS = ("d6", "d9", "d10", "d18")
FRAMES = 16
"""Number of frames of each clip, every third one, so that the faces move."""
MEDIAN_PX, MOST_PX = 0.3, 2.0
"""Greatest median and 99th percentile of the distance between the landmarks of the two libraries."""
ODD_SHAPES = [(16, 16), (1, 300), (300, 1), (1, 1), (16, 4000), (17, 33)]


def first_frames(clip: Path) -> np.ndarray:
    import av

    with av.open(str(clip)) as file:
        frames = [
            frame.to_ndarray(format="rgb24")
            for number, frame in zip(range(3 * FRAMES), file.decode(video=0), strict=False)
            if number % 3 == 0
        ]
    return np.stack(frames)


def turned(rgb: np.ndarray, degrees: float) -> np.ndarray:
    height, width = rgb.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return cv2.warpAffine(rgb, turn, (width, height), flags=cv2.INTER_LINEAR)


def scene(rgb: np.ndarray, side: int, x: int, y: int) -> np.ndarray:
    """A grey room of 1280 x 720 px with ``rgb``, ``side`` px wide, at (x, y)."""
    room = np.full((720, 1280, 3), 90, np.uint8)
    height = round(side * rgb.shape[0] / rgb.shape[1])
    room[y : y + height, x : x + side] = cv2.resize(rgb, (side, height), interpolation=cv2.INTER_AREA)
    return room


@pytest.fixture(scope="module")
def images(shared: Path) -> dict[str, np.ndarray]:
    found = {f"video {clip}": first_frames(shared / "clips" / f"{clip}.mp4") for clip in CLIPS}
    one, other = found["video d9"][0], found["video d10"][0]
    pair = scene(one, 560, 40, 60)
    pair[60 : 60 + 560, 680 : 680 + 560] = cv2.resize(other, (560, 560), interpolation=cv2.INTER_AREA)
    windows = [cv2.resize(found[f"video {clip}"][0], (MATTE_SIZE,) * 2, interpolation=cv2.INTER_AREA) for clip in CLIPS]
    rng = np.random.default_rng(0)
    return found | {
        "windows": np.stack(windows),
        "far face": scene(one, 300, 900, 30),
        "two faces": pair,
        "turned by 30 degrees": turned(one, 30.0),
        "turned by -60 degrees": turned(other, -60.0),
        "cut at the edge": np.ascontiguousarray(one[:, one.shape[1] // 2 - 60 :]),
        "wide": scene(one, 700, 0, 0),
        "upside down": np.ascontiguousarray(one[::-1, ::-1]),
        "dark": (one // 8).astype(np.uint8),
        "grey room": np.full((480, 640, 3), 90, np.uint8),
        "noise": rng.integers(0, 255, (240, 320, 3), dtype=np.uint8),
        "tiny": cv2.resize(one, (16, 16), interpolation=cv2.INTER_AREA),
        "small": cv2.resize(one, (64, 64), interpolation=cv2.INTER_AREA),
        "row": one[200:201],
    }


@pytest.fixture(scope="module")
def both(
    images: dict[str, np.ndarray], face_models: FaceModels, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Results of LiteRT, and of MediaPipe's library without a network."""
    pytest.importorskip("mediapipe")
    source, target = (tmp_path_factory.mktemp("faces") / name for name in ("images.npz", "results.npz"))
    np.savez(source, **images)
    command = [sys.executable, "-m", "tests.support.face_results", "mediapipe", str(face_models.folder)]
    done = subprocess.run(
        [*without_network(), *command, str(source), str(target)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(target) as stored:
        return results(face_models, images), dict(stored)


def test_landmarks_and_scores_are_those_of_mediapipe(
    both: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
) -> None:
    ours, theirs = both
    for name in theirs.keys() - {"matte", "fast matte"}:
        mine, other = ours[name], theirs[name]
        assert np.array_equal(np.isnan(mine), np.isnan(other)), f"{name}: a face was found by one library alone"
        if np.isnan(other).all():
            continue
        points = np.nan_to_num(mine - other)[:, : LANDMARKS * 3].reshape(-1, LANDMARKS, 3)
        away = np.linalg.norm(points[..., :2], axis=-1)
        assert np.median(away) < MEDIAN_PX, name
        assert np.percentile(away, 99) < MOST_PX, name
        assert np.median(np.abs(points[..., 2])) < MEDIAN_PX, name
        scores = np.abs(np.nan_to_num(mine - other))[:, LANDMARKS * 3 :]
        assert scores.shape[1] == len(BLENDSHAPES)
        assert np.median(scores) < 1e-3, name
        assert np.percentile(scores, 99) < 0.05, name
    for name in ("video d9", "two faces", "far face", "turned by 30 degrees"):
        assert not np.isnan(theirs[name]).any(), f"{name} was meant to show a face"
    for name in ("grey room", "noise", "row"):
        assert np.isnan(theirs[name]).all(), f"{name} was meant to show no face"


def test_mattes_are_those_of_mediapipe(both: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    ours, theirs = both
    assert np.abs(ours["matte"] - theirs["matte"]).max() < 1e-4
    assert np.abs(ours["fast matte"] - theirs["fast matte"]).max() < 0.1
    assert np.abs(ours["fast matte"] - theirs["fast matte"]).mean() < 1e-3
    assert theirs["matte"].max() > 0.9


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_odd_images_show_no_face(shape: tuple[int, int], face_models: FaceModels) -> None:
    mesh = face_models.face_mesh(live=True)
    rgb = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    rgb.flags.writeable = False
    assert mesh.detect(rgb) is None
    assert mesh.track(rgb, 0.033) is None


def test_a_view_of_a_frame_gives_the_landmarks_of_its_copy(
    images: dict[str, np.ndarray], face_models: FaceModels
) -> None:
    mesh = face_models.face_mesh(live=False)
    view = scene(images["video d9"][0], 600, 300, 60)[40:700, 280:920]
    seen, copied = mesh.detect(view), mesh.detect(view.copy())
    assert seen is not None
    assert copied is not None
    assert np.array_equal(seen[0], copied[0])


def test_a_face_that_leaves_is_found_again_elsewhere(images: dict[str, np.ndarray], face_models: FaceModels) -> None:
    one = images["video d9"][0]
    with FaceLandmarker(face_models, live=True) as landmarker:
        first = landmarker.detect(scene(one, 400, 0, 0))
        assert landmarker.detect(np.full((720, 1280, 3), 90, np.uint8)) is None
        again = landmarker.detect(scene(one, 400, 800, 200))
    assert first is not None
    assert again is not None
    shift = again.points[:, :2] - first.points[:, :2]
    assert np.allclose(np.median(shift, axis=0), (800.0, 200.0), atol=3.0)


def test_smoothing_calms_a_still_face_and_follows_a_fast_one() -> None:
    rng = np.random.default_rng(2)
    still = rng.uniform(100.0, 300.0, (LANDMARKS, 3))
    smoothing = OneEuroFilter()
    noisy = [still + rng.normal(0.0, 0.02, still.shape) for _ in range(40)]
    calm = [smoothing.apply(points, index * 0.033) for index, points in enumerate(noisy)]
    assert np.std(calm[20:], axis=0).mean() < 0.7 * np.std(noisy[20:], axis=0).mean()
    moved = still + np.array([150.0, 0.0, 0.0])
    for index in range(3):
        last = smoothing.apply(moved, (40 + index) * 0.033)
    assert np.abs(last - moved).max() < 3.0


def test_points_of_one_place_do_not_divide_by_zero() -> None:
    smoothing = OneEuroFilter()
    for index in range(3):
        assert np.array_equal(smoothing.apply(np.ones((LANDMARKS, 3)), index * 0.033), np.ones((LANDMARKS, 3)))


def test_files_that_are_no_models_are_refused_with_one_line(tmp_path: Path) -> None:
    task = tmp_path / "face_landmarker.task"
    for content in (b"", b"not a zip file"):
        task.write_bytes(content)
        with pytest.raises(UserError, match="downloaded again"):
            FaceMesh(task)
    with zipfile.ZipFile(task, "w") as bundle:
        bundle.writestr("face_detector.tflite", b"")
    with pytest.raises(UserError, match="downloaded again"):
        FaceMesh(task)
    with pytest.raises(UserError, match="cannot be read"):
        SelfieSegmenter(tmp_path / "nothing.tflite")
    with pytest.raises(UserError, match="LiteRT cannot run"):
        LiteRtModel(b"not a model" * 100)


@pytest.mark.parametrize(
    ("missing", "library", "advice"),
    [
        ("ai_edge_litert", "litert", "pip install ai-edge-litert"),
        ("cv2", "litert", "opencv-python-headless"),
        ("mediapipe", "mediapipe", "set run.face_models to litert"),
    ],
)
def test_a_missing_library_is_named(missing: str, library: str, advice: str, models: Path) -> None:
    program = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "from pathlib import Path\n"
        "from insta_runtime.errors import UserError\n"
        "from telepresence.tracking.face_models import FaceModels\n"
        f"for load in (FaceModels.face_mesh, FaceModels.segmenter):\n"
        "    try:\n"
        f"        load(FaceModels(Path({str(models)!r}), {library!r}), live=True)\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(advice in line for line in lines)


def test_the_setting_knows_two_libraries() -> None:
    assert load_config(None, device="cpu").run.face_models == "litert"
    assert load_config(None, ["run.face_models=mediapipe"], "cpu").run.face_models == "mediapipe"
    with pytest.raises(UserError, match=r"run\.face_models"):
        load_config(None, ["run.face_models=tensorflow"], "cpu")

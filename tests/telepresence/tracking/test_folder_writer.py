"""Tracked folders: writing, reading, and refusal of damaged or malicious ones."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from insta_runtime.errors import UserError
from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadRig
from insta_runtime.tracked import TrackedFolder, load_frame, read_take, write_take
from insta_runtime.types import Camera, HeadState, Take
from telepresence.measure.offline.video_tracking import write_ground_truth_folder
from telepresence.runtime.frames import CameraFrame, GroundTruth
from telepresence.tracking.folder_writer import TrackedFolderWriter, TrackedMemoryWriter

SIZE, COUNT = 48, 5
CAMERA = Camera(60.0, 60.0, 24.0, 24.0, SIZE, SIZE)


def _frames(seed: int = 0):
    """Frames with random images and head states."""
    rng = np.random.default_rng(seed)
    for index in range(COUNT):
        state = HeadState(
            rng.uniform(0, 1, 52).astype(np.float32),
            rotation=np.array([np.pi, 0.1 * index, 0.0], np.float32),
            translation=np.array([0.01, 0.02, 0.5 + 0.01 * index], np.float32),
        )
        rgb = np.repeat(np.repeat(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8), 8, 0), 8, 1)
        alpha = np.full((SIZE, SIZE), 40 * index, np.uint8)
        body = np.full((SIZE, SIZE), 40 * index + 20, np.uint8)
        yield CameraFrame(index, index * 40_000_000, rgb, GroundTruth(state, alpha, CAMERA, body))


@pytest.fixture
def folder(tmp_path, open_head) -> Path:
    path = tmp_path / "tracked"
    shape = np.linspace(-0.5, 0.5, len(open_head.shape_dirs)).astype(np.float32)
    write_ground_truth_folder(_frames(), path, head=open_head, shape=shape, fps=25.0, size=SIZE, source="test")
    return path


def test_round_trip(folder, open_head):
    tracked = TrackedFolder.open(folder)
    assert len(tracked) == COUNT
    assert tracked.frames.tolist() == list(range(COUNT))
    assert tracked.head_file is None
    assert tracked.take.fps == 25.0
    assert tracked.take.camera == CAMERA
    for frame in _frames():
        seen = tracked.observation(frame.frame_id)
        for name, value in frame.truth.state.arrays().items():
            assert np.array_equal(seen.state.arrays()[name], value)
        assert seen.t_capture_ns == frame.t_capture_ns
        assert np.array_equal(seen.alpha, frame.truth.alpha)
        assert np.array_equal(seen.body, frame.truth.body)
        assert np.abs(seen.rgb.astype(int) - frame.rgb)[4:].mean() < 12
    assert not list(folder.parent.glob(".*")), "temporary folders are gone"


def test_a_folder_without_body_mattes_can_be_read(folder):
    shutil.rmtree(folder / "body")
    seen = TrackedFolder.open(folder).observation(2)
    assert seen.body is None
    assert seen.alpha.min() == 80


def test_the_body_matte_is_at_least_alpha_and_a_damaged_one_is_refused(folder):
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(folder / "body" / "000002.png")
    seen = TrackedFolder.open(folder).observation(2)
    assert np.array_equal(seen.body, seen.alpha)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "body" / "000003.png")
    with pytest.raises(UserError, match="8 x 8"):
        TrackedFolder.open(folder).observation(3)
    (folder / "body" / "000003.png").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        TrackedFolder.open(folder).observation(3)


def test_load_frame_gives_vertices_in_camera_space(folder, open_head):
    rig = HeadRig(open_head)
    picture, alpha, vertices = load_frame(folder, 3, rig)
    assert picture.shape == (SIZE, SIZE, 3)
    assert alpha.shape == (SIZE, SIZE)
    assert vertices.dtype == np.float32
    take = read_take(folder)
    state = take.states[3]
    rest = rig.pose(take.shape, state).vertices.numpy()
    assert np.abs(vertices - (rest @ rotation_matrix(state.rotation).T + state.translation)).max() < 1e-6
    assert vertices[:, 2].min() > 0.3
    with pytest.raises(UserError, match="no frame 5"):
        load_frame(folder, COUNT, rig)
    with pytest.raises(UserError, match="another head"):
        load_frame(folder, 0, HeadRig(replace(open_head, sha256="0" * 64)))


def test_a_take_can_be_read_without_its_folder(folder, tmp_path):
    alone = tmp_path / "performance.npz"
    write_take(alone, read_take(folder))
    assert np.array_equal(read_take(alone).shape, read_take(folder).shape)
    assert read_take(alone).crop == (0.0, 0.0, float(SIZE))


def test_an_older_tracked_folder_is_replaced_and_nothing_else(folder, tmp_path, open_head):
    shape = np.zeros(len(open_head.shape_dirs), np.float32)
    arguments = {"head": open_head, "shape": shape, "fps": 30.0, "size": SIZE, "source": "again"}
    write_ground_truth_folder(_frames(1), folder, **arguments)
    assert TrackedFolder.open(folder).meta["source"] == "again"
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="choose another"):
        write_ground_truth_folder(_frames(), precious, **arguments)
    assert (precious / "letter.txt").read_text() == "dear"


def test_an_interrupted_writer_leaves_no_files(tmp_path):
    path = tmp_path / "half"

    def interrupted() -> None:
        with TrackedFolderWriter(path) as writer:
            writer.add(0, np.zeros((8, 8, 3), np.uint8), *np.zeros((2, 8, 8), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_in_memory_and_on_disk_a_tracked_folder_is_the_same(folder, open_head):
    on_disk = TrackedFolder.open(folder)
    writer = TrackedMemoryWriter(Path("clip.mp4"))
    for index in range(COUNT):
        frame = next(frame for frame in _frames() if frame.frame_id == index)
        writer.add(index, frame.rgb, frame.truth.alpha, frame.truth.body)
    facts = {"source": "test", "crop_policy": "center", "tracker": {"smoothing": "none: exact states"}}
    writer.finish(on_disk.take, head_name=open_head.name, head_file=None, facts=facts)
    held = writer.folder
    for name in sorted(held.files):
        stored = (folder / name).read_bytes()
        assert held.files[name] == stored or name == "take.npz"  # whose archive has the time of writing
    assert held.meta == on_disk.meta
    assert np.array_equal(held.take.shape, on_disk.take.shape)
    for index in on_disk.frames:
        ours, theirs = held.observation(index), on_disk.observation(index)
        for name in ("rgb", "alpha", "body"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name, value in theirs.state.arrays().items():
            assert np.array_equal(ours.state.arrays()[name], value)
        assert (ours.frame_id, ours.camera) == (theirs.frame_id, theirs.camera)


def test_a_replaced_folder_leaves_nothing_beside_it(folder, open_head):
    shape = np.zeros(len(open_head.shape_dirs), np.float32)
    write_ground_truth_folder(_frames(1), folder, head=open_head, shape=shape, fps=30.0, size=SIZE, source="again")
    assert list(folder.parent.iterdir()) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == ["alpha", "body", "frames", "meta.json", "take.npz"]


def test_reading_needs_only_numpy_torch_and_pillow(folder):
    code = (
        "import sys\n"
        "allowed = {'numpy', 'torch', 'PIL', 'insta_runtime', 'safetensors'}\n"
        "for name in ('av', 'aiortc', 'mediapipe', 'zmq', 'cv2', 'msgspec', 'platformdirs', 'telepresence', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from insta_runtime.head import HeadRig, load_head\n"
        "from insta_runtime.tracked import TrackedFolder, load_frame\n"
        f"folder = TrackedFolder.open(Path({str(folder)!r}))\n"
        "print(load_frame(folder, 0, HeadRig(load_head(folder.head_file)))[2].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def _rewrite(path: Path, **changes: object) -> None:
    with np.load(path) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    values.update(changes)
    np.savez(path, **{name: value for name, value in values.items() if value is not None})


def _npy(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """Header of a npy file without its data."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": np.int64(2)},
        {"version": None},
        {"expression": np.zeros((COUNT, 0), np.float32)},
        {"expression": np.zeros((0, 52), np.float32)},
        {"expression": np.zeros((COUNT, 2000), np.float32)},
        {"expression": np.zeros(COUNT, np.float32)},
        {"rotation": np.full((COUNT, 3), np.nan, np.float32)},
        {"translation": np.full((COUNT, 3), 1e30, np.float32)},
        {"translation": np.zeros((COUNT + 1, 3), np.float32)},
        {"eye_pose": np.zeros((COUNT, 2, 3), np.int64)},
        {"valid": np.ones(COUNT, np.int64)},
        {"size": np.array([1 << 40, 4])},
        {"size": np.array([0, 4])},
        {"K": np.zeros((3, 3))},
        {"fps": np.float64(0)},
        {"crop": np.array([0.0, 0.0, -1.0])},
        {"head_sha256": np.array([b"x"])},
        {"t_capture_ns": np.zeros(COUNT)},
        {"shape": np.array([{"a": 1}], dtype=object)},
    ],
)
def test_a_malformed_take_is_refused_in_one_line(folder, changes):
    _rewrite(folder / "take.npz", **changes)
    with pytest.raises(UserError) as error:
        read_take(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04" + b"\0" * 50, b"\x93NUMPY" * 10, b"\x80\x04K\x01."])
def test_a_take_that_is_not_an_archive_is_refused(folder, data):
    (folder / "take.npz").write_bytes(data)
    with pytest.raises(UserError):
        read_take(folder)


@pytest.mark.parametrize(
    "member",
    [
        _npy((1 << 40, 3)),
        _npy((-1, 3)),
        _npy((5, 3)) + b"\0" * 7,
        b"\x93NUMPY\x01\x00\x10\x00{'descr': __imp",
        b"\x93NUMPY\x01\x00\xff\xff{",
    ],
)
def test_a_false_array_header_is_refused(folder, member):
    source = folder / "take.npz"
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["rotation.npy"] = member
    with zipfile.ZipFile(source, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(UserError):
        read_take(folder)


def test_a_decompression_bomb_is_refused(folder, monkeypatch):
    monkeypatch.setattr("insta_runtime.tracked.MAX_ARRAY_BYTES", 1 << 20)
    source = folder / "take.npz"
    with zipfile.ZipFile(source, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb.npy", "w") as member:
        member.write(b"\0" * (1 << 20))
    with pytest.raises(UserError, match="too large"):
        read_take(folder)


@pytest.mark.parametrize("cut", [10, 500, 2000])
def test_a_truncated_take_is_refused(folder, cut):
    source = folder / "take.npz"
    source.write_bytes(source.read_bytes()[:-cut])
    with pytest.raises(UserError):
        read_take(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        json.dumps({"format_version": 7}),
        json.dumps({"format_version": 1}),
        json.dumps({"format_version": 1, "head": {"sha256": 3, "file": None}, "frames": COUNT}),
        json.dumps({"format_version": 1, "head": {"sha256": "0", "file": None}, "frames": COUNT}),
        json.dumps({"format_version": 1, "head": {"sha256": "0", "file": 1}, "frames": COUNT}),
        json.dumps({"format_version": 1, "head": {"sha256": "0", "file": None}, "frames": 4000}),
    ],
)
def test_a_malformed_meta_is_refused(folder, text):
    (folder / "meta.json").write_text(text)
    with pytest.raises(UserError) as error:
        TrackedFolder.open(folder)
    assert "\n" not in str(error.value)


def test_images_are_checked_when_they_are_read(folder):
    tracked = TrackedFolder.open(folder)
    frames = folder / "frames"
    Image.new("RGB", (SIZE + 1, SIZE)).save(frames / "000000.jpg")
    (frames / "000001.jpg").write_bytes(b"no picture")
    whole = (frames / "000002.jpg").read_bytes()
    (frames / "000002.jpg").write_bytes(whole[: len(whole) // 2])
    (frames / "000003.jpg").unlink()
    for index in range(4):
        with pytest.raises(UserError) as error:
            tracked.observation(index)
        assert "\n" not in str(error.value)
    assert tracked.observation(4).rgb.shape == (SIZE, SIZE, 3)


def test_missing_files_are_refused(tmp_path, folder):
    with pytest.raises(UserError):
        TrackedFolder.open(tmp_path / "nothing")
    with pytest.raises(UserError):
        read_take(tmp_path / "nothing.npz")
    shutil.rmtree(folder / "frames")
    with pytest.raises(UserError):
        TrackedFolder.open(folder).picture(0)


def test_a_take_without_a_face_is_valid(tmp_path):
    take = Take(
        (HeadState.neutral(52),), np.zeros(1, bool), np.zeros(60, np.float32), CAMERA, (0.0, 0.0, 48.0), "0" * 64, 30.0
    )
    write_take(tmp_path / "take.npz", take)
    assert not read_take(tmp_path / "take.npz").valid.any()

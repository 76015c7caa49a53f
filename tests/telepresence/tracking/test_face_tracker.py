"""Tracking of real video: the live tracker, lost faces, small faces, and the track command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from insta_runtime.errors import UserError
from insta_runtime.geometry import rotation_matrix
from insta_runtime.head import HeadRig
from insta_runtime.render.raster import rasterise
from insta_runtime.tracked import TrackedFolder
from insta_runtime.types import Camera, HeadState
from telepresence.config import Config
from telepresence.measure.offline.video_tracking import track_video
from telepresence.runtime.frames import CameraFrame, GroundTruth, Landmarks
from telepresence.sources.video_file import VideoFrames, VideoSource
from telepresence.tracking.calibration import calibrate
from telepresence.tracking.clay_renders import render_clay
from telepresence.tracking.ground_truth_tracker import GroundTruthTracker
from telepresence.tracking.head_fit import HeadFitter, Pinhole
from telepresence.tracking.landmark_basis import landmark_basis
from telepresence.tracking.landmarks import BLENDSHAPES, FaceLandmarker
from telepresence.tracking.recording_tracker import track_recording
from telepresence.tracking.tracker import FaceTracker
from tests.support.fake_time import FakeTime
from tests.support.video_files import write_sizes


@pytest.fixture(scope="module")
def pictures(shared):
    """Frames of the first two seconds of a clip."""
    reader = VideoFrames(shared / "clips" / "d18.mp4")
    frames = [next(reader) for _ in range(60)]
    reader.close()
    return frames


@pytest.fixture(scope="module")
def faces(pictures, face_models):
    with FaceLandmarker(face_models, live=False) as landmarker:
        return [landmarker.detect(frame.rgb) for frame in pictures]


@pytest.fixture(scope="module")
def calibration(open_head, faces, pictures):
    height, width = pictures[0].rgb.shape[:2]
    return calibrate(open_head, faces[::4], width, height)


def test_a_recording_is_tracked_closely(open_head, faces, pictures, face_models):
    height, width = pictures[0].rgb.shape[:2]
    recording = track_recording(open_head, faces, lambda: pictures, width, height, 30.0, models=face_models)
    figures = recording.figures()
    assert figures["tracked"] == figures["frames"] == len(pictures)
    assert figures["reprojection_px_median"] < 1.7
    assert figures["jitter_px"] < 0.5
    again = track_recording(open_head, faces, lambda: pictures, width, height, 30.0, models=face_models)
    assert np.array_equal(again.errors, recording.errors), "the same landmarks give the same result"
    # Noisy landmarks, as of a hidden face, are rejected.
    moved = replace(faces[30], points=faces[30].points.copy())
    moved.points[:, :2] += np.random.default_rng(0).normal(0.0, 12.0, (478, 2)).astype(np.float32)
    hidden = [*faces[:30], *[moved] * 8, *faces[38:]]
    recording = track_recording(open_head, hidden, lambda: pictures, width, height, 30.0, models=face_models)
    assert not recording.valid[32:36].any()
    assert recording.valid[-10:].all()
    assert np.array_equal(recording.states[33].expression, recording.states[32].expression), "repeated while lost"


def test_live_tracking_calibrates_tracks_loses_and_recovers_the_face(open_head, pictures, face_models):
    tracker = FaceTracker(open_head, size=256, models=face_models)
    try:
        assert tracker.state == "searching"
        states, observations, provisional, poses = [], [], [], []
        blank = np.zeros_like(pictures[0].rgb)
        # Capture times are doubled, so that two seconds of video suffice for calibration.
        for index, frame in enumerate([*pictures[:40], *[replace(pictures[0], rgb=blank)] * 15, *pictures[40:50]]):
            stamped = replace(frame, frame_id=index, t_capture_ns=index * 66_000_000)
            tracked = tracker.track(stamped, poses.append)
            states.append(tracker.state)
            observations.append(tracked.observation)
            provisional.append(tracked.provisional)
            assert tracked.crop_rgb.shape == (256, 256, 3)
            assert tracked.frame_id == index
        first = next(i for i, seen in enumerate(observations) if seen is not None)
        assert states[0] == "calibrating"
        assert first < 30
        assert all(provisional[1:first]), "until calibration there are provisional observations"
        assert not any(provisional[first:])
        guess = provisional[first - 1]
        assert guess.shape.shape == (len(open_head.shape_dirs),)
        assert np.abs(guess.observation.state.translation - observations[first].state.translation).max() < 0.03
        assert guess.observation.alpha[128, 128] > 250
        assert set(states[first:40]) == {"tracking"}
        assert set(states[40:55]) == {"lost"}
        assert observations[40] is None
        assert states[57:] == ["tracking"] * 8
        assert [pose.state for pose in poses] == [seen.state for seen in observations if seen is not None]
        seen = observations[first]
        assert seen.alpha.shape == (256, 256)
        assert seen.alpha[128, 128] > 250
        assert seen.alpha[:10, :10].max() < 10
        assert seen.alpha[-3:].max() < 30, "alpha excludes the torso"
        assert (seen.body.astype(int) >= seen.alpha.astype(int) - 1).all()
        assert seen.body[-3:].max() > 200, "the body matte includes the torso"
        assert tracker.shape.shape == (len(open_head.shape_dirs),)
        stored = tracker.calibration
        tracker.recalibrate()
        assert tracker.state == "searching"
        assert tracker.calibration is None
    finally:
        tracker.close()
    tracker = FaceTracker(open_head, size=64, models=face_models, calibration=stored)
    try:
        assert tracker.track(pictures[0]).observation is not None, "a stored calibration is used from the first frame"
        for odd in ((1, 1), (2, 700), (40, 30)):  # unusual frame sizes
            tracker.track(CameraFrame(0, 0, np.zeros((*odd, 3), np.uint8)))
    finally:
        tracker.close()


def test_the_matte_covers_the_tracked_face(open_head, pictures, face_models, calibration):
    tracker = FaceTracker(open_head, size=256, models=face_models, calibration=calibration)
    try:
        seen = tracker.track(pictures[0]).observation
    finally:
        tracker.close()
    rig = HeadRig(open_head)
    vertices = rig.pose(calibration.shape, seen.state).vertices.numpy() @ rotation_matrix(seen.state.rotation).T
    posed = torch.from_numpy(vertices + seen.state.translation)
    face = open_head.masks["face"][open_head.faces].min(1) > 0.5
    mask = rasterise(posed, torch.from_numpy(open_head.faces[face]), seen.camera).mask.numpy()
    assert mask.sum() > 4000
    assert (seen.alpha[mask] > 128).mean() > 0.97


def test_a_small_face_is_found_through_tiles(pictures, face_models):
    """A face of 8 % of the longest side, away from the centre, is found."""
    rgb = pictures[0].rgb
    with FaceLandmarker(face_models, live=True) as landmarker:
        whole = landmarker.detect(rgb)
        scale = 0.08 * 1280 / whole.face_size
        small = Image.fromarray(rgb).resize((round(rgb.shape[1] * scale), round(rgb.shape[0] * scale)))
        scene = np.full((720, 1280, 3), 128, np.uint8)
        scene[400 : 400 + small.height, 900 : 900 + small.width] = np.array(small)
        found = [landmarker.detect(scene) for _ in range(12)]
    hits = [face for face in found if face is not None]
    assert len(hits) >= 6
    expected = whole.points[:, :2] * scale + [900, 400]
    assert np.abs(hits[-1].points[:, :2] - expected).mean() < 2.5


def test_renders_of_the_head_are_tracked(open_head, face_models):
    """MediaPipe on clay renders with known poses, including the bias of the detector."""
    rig, camera, size = HeadRig(open_head), None, 480
    camera = Camera(576.0, 576.0, 240.0, 240.0, size, size)
    yaws = [-0.4, -0.2, 0.0, 0.2, 0.4]
    shape = np.zeros(len(open_head.shape_dirs), np.float32)
    vertices = rig.pose(shape, HeadState.neutral(52)).vertices.numpy()
    fitter = HeadFitter(landmark_basis(open_head), Pinhole.of_frame(size, size, 576.0))
    found = []
    with FaceLandmarker(face_models, live=False) as landmarker:
        for yaw in yaws:
            turn = np.diag([1.0, -1.0, -1.0]) @ rotation_matrix(np.array([0.0, yaw, 0.0]))
            posed = torch.from_numpy((vertices @ turn.T + [0.0, 0.02, 0.6]).astype(np.float32))
            face = landmarker.detect(render_clay(posed, rasterise(posed, rig.faces, camera)))
            assert face is not None
            fit = fitter.fit(face, None)
            assert fit.error < 2.0
            found.append(np.arctan2(fit.rotation[0, 2], -fit.rotation[2, 2]))
    assert 0.85 < np.polyfit(yaws, found, 1)[0] < 1.15


def test_the_command_writes_a_folder_without_log_lines(shared, models, tmp_path):
    """Command line on a short clip; no traceback at exit."""
    import av

    clip = tmp_path / "short.mp4"
    reader = VideoFrames(shared / "clips" / "d18.mp4")
    with av.open(str(clip), "w") as output:
        stream = output.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 480
        stream.bit_rate = 4_000_000
        for _ in range(14):
            for packet in stream.encode(av.VideoFrame.from_ndarray(next(reader).rgb, format="rgb24")):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    reader.close()
    report, out = tmp_path / "figures.json", tmp_path / "tracked"
    command = [sys.executable, "-m", "telepresence", "track", str(clip), "--out", str(out), "--json", str(report)]
    command += ["--models", str(models), "--size", "128", "--crop", "head"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "W0000" not in done.stderr
    figures = json.loads(report.read_text())
    assert figures["frames"] == figures["tracked"] == 14
    assert {"reprojection_px_median", "fit_ms_median", "texture_ms_median", "jitter_px"} <= set(figures)
    folder = TrackedFolder.open(out)
    assert folder.observation(3).rgb.shape == (128, 128, 3)
    assert folder.meta["crop_policy"] == "head"


def test_a_video_without_a_face_gives_a_one_line_error(models, tmp_path):
    import av

    clip = tmp_path / "noise.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(clip), "w") as output:
        stream = output.add_stream("mpeg4", rate=30)
        stream.width, stream.height = 96, 64
        for _ in range(12):
            picture = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    with pytest.raises(UserError, match="no face"):
        track_video(clip, tmp_path / "out", config=Config(), head=None, models=models, focal=None)
    assert not (tmp_path / "out").exists()


def test_the_ground_truth_tracker_passes_states_and_mattes_on(open_head):
    state = HeadState.neutral(52)
    camera = Camera(60.0, 60.0, 24.0, 24.0, 48, 48)
    rgb, alpha = np.full((48, 48, 3), 90, np.uint8), np.full((48, 48), 255, np.uint8)
    tracker = GroundTruthTracker(open_head, np.zeros(60, np.float32), size=96)
    poses = []
    tracked = tracker.track(CameraFrame(7, 123, rgb, GroundTruth(state, alpha, camera)), poses.append)
    assert [(pose.state.t_capture_ns, pose.camera) for pose in poses] == [(123, camera.scaled(96, 96))]
    assert tracker.state == "tracking"
    assert tracked.observation.t_capture_ns == 123
    assert tracked.observation.camera == camera.scaled(96, 96)
    assert tracked.observation.alpha.shape == (96, 96)
    assert tracker.track(CameraFrame(8, 124, rgb)).observation is None
    assert tracker.state == "lost"


def normalised(face, frame):
    """Landmarks of ``face`` as a browser sends them: normalised by the frame size."""
    height, width = frame.rgb.shape[:2]
    points = face.points / np.array([width, height, width], np.float32)
    return Landmarks(points, np.array([face.scores[name] for name in BLENDSHAPES], np.float32))


def landmarks_only(frame, landmarks, size=None):
    """``frame`` as received from a browser that sends landmarks without images."""
    black = np.zeros((*(size or frame.rgb.shape[:2]), 3), np.uint8)
    return replace(frame, rgb=black, landmarks_only=True, landmarks=landmarks)


def test_a_calibrated_face_is_tracked_from_landmarks_alone(open_head, pictures, faces, face_models, calibration):
    tracker, seeing = (FaceTracker(open_head, size=256, models=face_models, calibration=calibration) for _ in range(2))
    try:
        stamped = [replace(frame, frame_id=i, t_capture_ns=i * 33_000_000) for i, frame in enumerate(pictures)]
        for frame in stamped[:6]:
            tracker.track(frame)
            seeing.track(frame)
        known = tracker.shape
        angles, apart = [], []
        for frame, face in zip(stamped[6:20], faces[6:20], strict=True):
            half = frame.rgb.shape[0] // 2, frame.rgb.shape[1] // 2  # a browser may track at another resolution
            poses = []
            blind = tracker.track(landmarks_only(frame, normalised(face, frame), half), poses.append)
            assert poses == [blind.tracked_state]
            seen = seeing.track(frame).observation.state
            assert blind.observation is None, "no observation without an image"
            assert not blind.crop_rgb.any()
            assert blind.residual is not None, "the residual is computed from landmarks"
            turn = rotation_matrix(seen.rotation).T @ rotation_matrix(blind.tracked_state.state.rotation)
            angles.append(np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
            apart.append(np.linalg.norm(blind.tracked_state.state.translation - seen.translation))
            assert blind.tracked_state.camera.width == 256
        assert np.median(angles) < 2.5, "landmarks alone give a less accurate rotation"
        assert np.median(apart) < 0.01
        assert tracker.shape is known

        assert tracker.track(landmarks_only(stamped[59], None)).tracked_state is None
        assert tracker.state == "lost"
        tall = landmarks_only(stamped[59], normalised(faces[59], stamped[59]), (640, 320))
        assert tracker.track(tall).tracked_state is None, "another aspect ratio is another camera"
        assert tracker.shape is known, "the calibration is kept"
    finally:
        tracker.close()
        seeing.close()
    stored = FaceTracker(open_head, size=256, models=face_models, calibration=calibration)
    try:
        assert stored.track(landmarks_only(stamped[0], normalised(faces[0], stamped[0]))).tracked_state is not None, (
            "no image is needed"
        )
        points = np.random.default_rng(0).uniform(-0.5, 1.5, (4, 478, 3)).astype(np.float32)
        points[1] = 0.25
        points[2, :, :2] = np.linspace(-0.5, 1.5, 478)[:, None]
        points[3] = np.where(np.arange(478)[:, None] < 477, -0.5, 1.4)
        for number, wild in enumerate([*points, *points]):
            nonsense = landmarks_only(stamped[0], Landmarks(wild, np.ones(52, np.float32)))
            stored.track(replace(nonsense, t_capture_ns=(number + 1) * 33_000_000))
        assert stored.state == "lost"
        for number in range(4):
            seen = stored.track(replace(stamped[number], t_capture_ns=(20 + number) * 33_000_000))
        assert seen.observation is not None, "tracking recovers with images"
    finally:
        stored.close()


@pytest.fixture
def two_sizes(pictures, tmp_path):
    """A WebM file of 15 frames a second whose frames become narrower after two seconds."""
    side = pictures[0].rgb.shape[1]
    narrow = [frame.rgb[:, side // 8 : -side // 8] for frame in pictures[30:60]]
    return write_sizes(tmp_path / "two.webm", [*[frame.rgb for frame in pictures[:30]], *narrow], fps=15)


def test_a_recording_of_two_sizes_is_refused(two_sizes, models, tmp_path):
    with pytest.raises(UserError, match="size changes from 480x480 to 360x480 pixels at frame 30"):
        track_video(two_sizes, tmp_path / "out", config=Config(), head=None, models=models, focal=None)
    assert not (tmp_path / "out").exists()


def test_live_tracking_follows_a_camera_whose_size_changes(open_head, two_sizes, face_models, monkeypatch):
    monkeypatch.setattr("telepresence.sources.video_file.time", FakeTime())
    source = VideoSource(two_sizes)
    tracker = FaceTracker(open_head, size=128, models=face_models)
    try:
        frames = [source.read(1.0) for _ in range(60)]
        seen = [(frame, tracker.track(frame), tracker.state, tracker.shape) for frame in frames]
    finally:
        tracker.close()
        source.close()
    before = [each for each in seen if each[0].rgb.shape[1] == 480]
    after = [each for each in seen if each[0].rgb.shape[1] == 360]
    assert (len(before), len(after)) == (30, 30)
    assert before[-1][2] == "tracking"
    assert after[0][2] == "calibrating", "the camera and the crop are those of another picture"
    assert after[0][1].observation is None
    assert after[-1][2] == "tracking"
    assert np.array_equal(after[-1][3], before[-1][3]), "the identity is kept"
    first, last = before[-1][1].observation, after[-1][1].observation
    assert last.camera.width == last.rgb.shape[1] == 128
    assert np.abs(first.state.translation - last.state.translation).max() < 0.05
    assert first.alpha[64, 64] > 250
    assert last.alpha[64, 64] > 250


def test_smaller_frames_belong_to_the_same_camera(open_head, pictures, calibration, face_models):
    height, width = pictures[0].rgb.shape[:2]
    tracker = FaceTracker(open_head, size=256, models=face_models, calibration=calibration)
    try:
        first = tracker.track(replace(pictures[0], t_capture_ns=0)).observation
        small = np.array(Image.fromarray(pictures[1].rgb).resize((width // 2, height // 2)))
        second = tracker.track(replace(pictures[1], rgb=small, t_capture_ns=33_000_000)).observation
        assert np.abs(first.state.translation - second.state.translation).max() < 0.02
        assert tracker.calibration.width == width
        larger = np.array(Image.fromarray(pictures[2].rgb).resize((width * 2, height * 2)))
        tracker.track(replace(pictures[2], rgb=larger, t_capture_ns=66_000_000))
        assert tracker.state == "calibrating", "a larger frame recalibrates"
        for i, frame in enumerate(pictures[:26]):
            larger = np.array(Image.fromarray(frame.rgb).resize((width * 2, height * 2)))
            tracker.track(replace(frame, rgb=larger, t_capture_ns=(i + 3) * 66_000_000))
        assert np.array_equal(tracker.shape, calibration.shape), "the identity is kept"
    finally:
        tracker.close()

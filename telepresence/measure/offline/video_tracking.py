"""Tracked folders from a recorded video, and from a clip of the synthetic actor, whose head states are exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.types import Bytes, Float32, Take
from telepresence.config import Config
from telepresence.runtime.frames import CameraFrame
from telepresence.tracking.crop import CropPolicy, choose_crop
from telepresence.tracking.face_models import FaceModels
from telepresence.tracking.folder_writer import TrackedFolderWriter, TrackedMemoryWriter, TrackedWriter

if TYPE_CHECKING:
    from insta_runtime.tracked import TrackedFolder
    from telepresence.tracking.crop import Crop
    from telepresence.tracking.landmarks import FaceLandmarks
    from telepresence.tracking.recording_tracker import TrackedRecording

COMPRESSION_THREADS: Final = 2
"""Number of threads that compress and write the images of a tracked folder."""
MAX_PENDING_IMAGES: Final = 16
"""Maximum number of images that wait for compression; adding another one blocks."""
MAX_FRAMES: Final = 100_000
"""Maximum number of frames of a video that is tracked."""
ACTOR_FRAMES: Final = 300
"""Number of frames of the clip of the synthetic actor."""
ACTOR_FPS: Final = 30.0
"""Frames per second of the clip of the synthetic actor."""


def track_video(
    video: str | Path, out: Path, *, config: Config, head: Path | None, models: Path | None, focal: float | None
) -> dict[str, Any]:
    """Track the face in a video and write a tracked folder.

    Args:
        video: path of the video, or ``synthetic`` for ten seconds of the synthetic actor with exact states and mattes.
        out: the tracked folder to write.
        config: ``run.size``, ``run.crop`` and ``run.face_models`` are used.
        head: a FLAME file; None for the open default head.
        models: folder of MediaPipe's model files; None for the user's cache.
        focal: focal length of the camera in pixels; None for 1.2 times the longest side.

    Returns the figures of `docs/tracking.md`.  Raises UserError for a video that cannot be read or shows no face, and
    for an ``out`` that is not a tracked folder.
    """
    if video == "synthetic":
        return _track_actor(out, config.run.size)
    with TrackedFolderWriter(out) as writer:
        return _track_video(Path(video), writer, config, head, models, focal)


def track_in_memory(video: Path, *, config: Config, head: Path | None, models: Path | None) -> TrackedFolder:
    """Track the face in a video like `track_video`, into a tracked folder that is held in memory, not on disk."""
    writer = TrackedMemoryWriter(video)
    _track_video(video, writer, config, head, models, None)
    return writer.folder


def _track_video(
    path: Path, writer: TrackedWriter, config: Config, head: Path | None, models: Path | None, focal: float | None
) -> dict[str, Any]:
    from telepresence.sources.video_file import VideoFrames
    from telepresence.tracking.recording_tracker import track_recording
    from telepresence.tracking.state_builder import with_landmark_embedding

    size, policy = config.run.size, _crop_policy(config.run.crop)
    files = FaceModels(models, config.run.face_models)
    reader = VideoFrames(path)
    with FrameProgress() as progress:
        model = load_head(head)
        if model.embedding is None:
            model = with_landmark_embedding(model, files, progress.fraction("embedding landmarks"))
        faces = _detect_faces(path, progress.count("detecting faces", reader, reader.count), files)
        reader.require_frames()

        def read_again() -> Iterator[CameraFrame]:
            return progress.count("fitting the head", VideoFrames(path), len(faces))

        recording = track_recording(model, faces, read_again, reader.width, reader.height, reader.fps, focal, files)
        calibration = recording.calibration
        tracked = [
            face for face, valid in zip(recording.faces, recording.valid, strict=True) if valid and face is not None
        ]
        crop = choose_crop(policy, tracked, reader.width, reader.height, size)
        frames = progress.count("matting", VideoFrames(path), len(faces))
        _write_crops(writer, frames, recording, model, crop, size, files)
        figures = recording.figures()
        camera = crop.camera(calibration.camera)
        take = Take(recording.states, recording.valid, calibration.shape, camera, crop.window, model.sha256, reader.fps)
        facts = {
            "source": path.name,
            "crop_policy": policy,
            "tracker": {"smoothing": "zero-phase gaussian, sigma 1/30 s", **figures},
            "calibration": calibration.to_json(),
        }
        writer.finish(take, head_name=model.name, head_file=head, facts=facts)
    return {**figures, "video": path.name, "size": size, "crop": list(crop.window)}


def write_ground_truth_folder(
    frames: Iterable[CameraFrame], out: Path, *, head: HeadModel, shape: Float32, fps: float, size: int, source: str
) -> dict[str, Any]:
    """Write frames that carry their exact head state and matte (`CameraFrame.truth`) as a tracked folder.

    ``shape`` is the identity code of the subject, ``size`` the side of the frames in pixels, ``source`` the name of
    the recording in the folder's metadata.  Returns the number of frames, written and tracked.
    """
    from telepresence.tracking.ground_truth_tracker import GroundTruthTracker

    tracker = GroundTruthTracker(head, shape, size=size)
    states, camera = [], None
    with TrackedFolderWriter(out) as writer:
        with _ImageCompressor(writer) as compressor:
            for index, frame in enumerate(frames):
                seen = tracker.track(frame).observation
                assert seen is not None
                camera = seen.camera
                states.append(seen.state)
                compressor.add(index, seen.rgb, seen.alpha, seen.alpha if seen.body is None else seen.body)
        assert camera is not None
        valid = np.ones(len(states), np.bool_)
        crop = (0.0, 0.0, float(size))
        take = Take(tuple(states), valid, shape, camera, crop, head.sha256, fps)
        facts = {"source": source, "crop_policy": "center", "tracker": {"smoothing": "none: exact states"}}
        writer.finish(take, head_name=head.name, head_file=None, facts=facts)
    return {"frames": len(states), "tracked": len(states)}


def _track_actor(out: Path, size: int) -> dict[str, Any]:
    from telepresence.actor.actor import Actor
    from telepresence.sources.synthetic import actor_clip

    actor = Actor()
    with FrameProgress() as progress:
        frames = progress.count("rendering", actor_clip(ACTOR_FRAMES, ACTOR_FPS, size, actor=actor), ACTOR_FRAMES)
        return write_ground_truth_folder(
            frames, out, head=actor.head, shape=actor.shape, fps=ACTOR_FPS, size=size, source="synthetic"
        )


def _detect_faces(path: Path, frames: Iterable[CameraFrame], models: FaceModels) -> list[FaceLandmarks | None]:
    """Face landmarks of every frame.  UserError above `MAX_FRAMES`."""
    from telepresence.tracking.landmarks import FaceLandmarker

    faces: list[FaceLandmarks | None] = []
    with FaceLandmarker(models, live=False) as landmarker:
        for frame in frames:
            if len(faces) == MAX_FRAMES:
                raise UserError(f"{path} has more than {MAX_FRAMES} frames: cut it into shorter videos")
            faces.append(landmarker.detect(frame.rgb))
    return faces


def _write_crops(
    writer: TrackedWriter,
    frames: Iterable[CameraFrame],
    recording: TrackedRecording,
    model: HeadModel,
    crop: Crop,
    size: int,
    models: FaceModels,
) -> None:
    """Crop and matte every frame, and write the images."""
    from telepresence.tracking.matting import PersonMatting

    camera = crop.camera(recording.calibration.camera)
    matting = PersonMatting(model, recording.calibration.shape, models, live=False)
    try:
        with _ImageCompressor(writer) as compressor:
            for frame in frames:
                index = frame.frame_id
                face = recording.faces[index]
                alpha = body = np.zeros((size, size), np.uint8)
                if recording.valid[index] and face is not None:
                    alpha, whole_body = matting.mattes(frame.rgb, face, crop, camera, recording.states[index])
                    body = alpha if whole_body is None else whole_body
                compressor.add(index, crop.apply(frame.rgb), alpha, body)
    finally:
        matting.close()


class FrameProgress:
    """Progress bars with the time left, on standard error, one for each pass over the frames; a context manager."""

    def __enter__(self) -> FrameProgress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:>18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=Console(stderr=True))
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def count(self, title: str, frames: Iterable[CameraFrame], expected: int) -> Iterator[CameraFrame]:
        """Yield ``frames`` and advance a bar by each; ``expected`` is the likely number of frames."""
        task = self._bars.add_task(title, total=expected)
        done = 0
        for frame in frames:
            yield frame
            done += 1
            self._bars.update(task, completed=done, total=max(expected, done))
        self._bars.update(task, completed=done, total=done)

    def fraction(self, title: str) -> Callable[[float], None]:
        """Add a bar; the function that is returned sets its completed fraction, in [0, 1]."""
        task = self._bars.add_task(title, total=100)
        return lambda part: self._bars.update(task, completed=round(100 * part))


class _ImageCompressor:
    """Compresses and writes images in threads; at most `MAX_PENDING_IMAGES` of them wait."""

    def __init__(self, writer: TrackedWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(COMPRESSION_THREADS, thread_name_prefix="write")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> _ImageCompressor:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)
        for future in self._pending:
            future.result()

    def add(self, index: int, rgb: Bytes, alpha: Bytes, body: Bytes) -> None:
        if len(self._pending) >= MAX_PENDING_IMAGES:
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(self._writer.add, index, rgb, alpha, body))


def _crop_policy(word: str) -> CropPolicy:
    for policy in ("auto", "head", "center"):
        if word == policy:
            return policy
    raise UserError(f"--crop must be auto, head or center, got {word!r}")

"""`telepresence track`: a video becomes a tracked folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.types import Bytes, Float32, Take
from telepresence.config import Config
from telepresence.runtime.frames import CameraFrame
from telepresence.tracking.crop import CropPolicy, choose_crop
from telepresence.tracking.folder import FolderWriter

WRITERS = 2  # threads that compress pictures
PENDING = 16  # pictures waiting for them at most
MAX_FRAMES = 100_000
ACTOR_FRAMES = 300
ACTOR_FPS = 30.0


def track(
    video: str | Path, out: Path, *, config: Config, head: Path | None, models: Path | None, focal: float | None
) -> dict[str, Any]:
    """Track the face of ``video`` into the tracked folder ``out``; returns the figures of `docs/tracking.md`.

    ``head`` is a FLAME file (None: the open head), ``models`` a folder of MediaPipe's files, ``focal`` in px.
    The word ``synthetic`` in place of a video writes ten seconds of the actor, with exact states and mattes.  Raises
    UserError for a video that cannot be read or shows no face, and for an ``out`` that is something else.
    """
    if video == "synthetic":
        return _track_actor(out, config.run.size)
    from telepresence.sources.video import video_frames
    from telepresence.tracking.landmarks import FaceLandmarker, FaceLandmarks
    from telepresence.tracking.matting import Matter
    from telepresence.tracking.recording import track_recording
    from telepresence.tracking.state import trackable

    path = Path(video)
    size, policy = config.run.size, _policy(config.run.crop)
    reader = video_frames(path)
    with FolderWriter(out) as writer, Progress() as progress:
        model = load_head(head)
        if model.embedding is None:
            model = trackable(model, models, progress.part("knowing the head"))
        faces: list[FaceLandmarks | None] = []
        with FaceLandmarker(models, live=False) as landmarker:
            for frame in progress.each("finding the face", reader, reader.count):
                if len(faces) == MAX_FRAMES:
                    raise UserError(f"{path} has more than {MAX_FRAMES} pictures: cut it into shorter parts")
                faces.append(landmarker.detect(frame.rgb))

        def again() -> Iterator[CameraFrame]:
            return progress.each("following the head", video_frames(path), len(faces))

        recording = track_recording(model, faces, again, reader.width, reader.height, reader.fps, focal, models)
        calibration = recording.calibration
        seen = [
            face for face, valid in zip(recording.faces, recording.valid, strict=True) if valid and face is not None
        ]
        crop = choose_crop(policy, seen, reader.width, reader.height, size)
        camera = crop.camera(calibration.camera)
        matter = Matter(model, calibration.shape, models, live=False)
        try:
            with _Compressor(writer) as compressor:
                for frame in progress.each("cutting out", video_frames(path), len(faces)):
                    index = frame.frame_id
                    face = recording.faces[index]
                    alpha = body = np.zeros((size, size), np.uint8)
                    if recording.valid[index] and face is not None:
                        alpha, seen_body = matter.mattes(frame.rgb, face, crop, camera, recording.states[index])
                        body = alpha if seen_body is None else seen_body
                    compressor.add(index, crop.apply(frame.rgb), alpha, body)
        finally:
            matter.close()
        figures = recording.figures()
        take = Take(recording.states, recording.valid, calibration.shape, camera, crop.window, model.sha256, reader.fps)
        facts = {
            "source": path.name,
            "crop_policy": policy,
            "tracker": {"smoothing": "zero-phase gaussian, sigma 1/30 s", **figures},
            "calibration": calibration.to_json(),
        }
        writer.finish(take, head_name=model.name, head_file=head, facts=facts)
    return {**figures, "video": path.name, "size": size, "crop": list(crop.window)}


def track_truth(
    frames: Iterable[CameraFrame], out: Path, *, head: HeadModel, shape: Float32, fps: float, size: int, source: str
) -> dict[str, Any]:
    """Write pictures that know their own state and matte (the synthetic actor's) as a tracked folder."""
    from telepresence.tracking.tracker import TruthTracker

    tracker = TruthTracker(head, shape, size=size)
    states, camera = [], None
    with FolderWriter(out) as writer:
        with _Compressor(writer) as compressor:
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
    from telepresence.sources.synthetic import actor_take

    actor = Actor()
    with Progress() as progress:
        frames = progress.each("acting", actor_take(ACTOR_FRAMES, ACTOR_FPS, size, actor=actor), ACTOR_FRAMES)
        return track_truth(
            frames, out, head=actor.head, shape=actor.shape, fps=ACTOR_FPS, size=size, source="synthetic"
        )


class Progress:
    """A progress bar with the time left, on standard error."""

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description:>18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=Console(stderr=True))
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def each(self, title: str, frames: Iterable[CameraFrame], count: int) -> Iterator[CameraFrame]:
        """Pass ``frames`` on and count them."""
        task = self._bars.add_task(title, total=count)
        done = 0
        for frame in frames:
            yield frame
            done += 1
            self._bars.update(task, completed=done, total=max(count, done))
        self._bars.update(task, completed=done, total=done)

    def part(self, title: str) -> Callable[[float], None]:
        """A bar that is told which part of the work is done, in [0, 1]."""
        task = self._bars.add_task(title, total=100)
        return lambda part: self._bars.update(task, completed=round(100 * part))


class _Compressor:
    """Compresses and writes pictures in threads, a bounded number of them waiting."""

    def __init__(self, writer: FolderWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> _Compressor:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)
        for future in self._pending:
            future.result()

    def add(self, index: int, rgb: Bytes, alpha: Bytes, body: Bytes) -> None:
        if len(self._pending) >= PENDING:
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(self._writer.add, index, rgb, alpha, body))


def _policy(word: str) -> CropPolicy:
    for policy in ("auto", "head", "center"):
        if word == policy:
            return policy
    raise UserError(f"--crop is auto, head or center, not {word!r}")

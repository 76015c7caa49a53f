"""Recordings that can be played in place of a camera in a rehearsed call: videos and tracked folders."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from insta_runtime.errors import UserError
from insta_runtime.evaluation.protocol import split
from insta_runtime.head import load_head
from insta_runtime.tracked import TrackedFolder

if TYPE_CHECKING:
    from telepresence.sources import Source


@dataclass(frozen=True)
class RehearsalClip:
    """A recording that is played over and over in place of a camera.

    Attributes:
        name: file or folder name.
        open: opens it as a camera source.
        seconds: duration of one round.
        fps: frames per second.
        head: file of its head model; None for the open default head.
        facts: source, crop and tracker in words, for the figures.
    """

    name: str
    open: Callable[[], Source]
    seconds: float
    fps: float
    head: Path | None
    facts: dict[str, str]


def open_clip(source: Path, head: Path | None, holdout: float = 0.0) -> RehearsalClip:
    """Open a tracked folder or a video for a rehearsed call.

    ``holdout`` is the fraction of a tracked folder, at its end, that is not played.  Raises UserError for a source that
    cannot be played, and for another ``head`` than the folder was tracked with.
    """
    if source.is_dir():
        from telepresence.measure.offline.recordings import tracking_facts
        from telepresence.sources.tracked_folder import TrackedSource

        folder = TrackedFolder.open(source)
        train, _ = split(len(folder.frames), holdout)
        if len(train) < 2:
            raise UserError(f"{source} has {len(folder.frames)} frames with a face, too few for a call")
        file = head or folder.head_file
        if load_head(file).sha256 != folder.take.head_sha256:
            raise UserError(
                f"{source} was tracked with another head model than --head: pass the one it was tracked with"
            )
        played = int(folder.frames[train[-1]]) + 1 if holdout else len(folder)
        camera = partial(TrackedSource, source, played)
        fps = folder.take.fps
        return RehearsalClip(source.name, camera, played / fps, fps, file, tracking_facts(folder))
    if holdout:
        raise UserError(
            f"{source} is not a tracked folder, which --offline needs: telepresence track {source} --out DIR"
        )
    if not source.is_file():
        raise UserError(f"there is no video or tracked folder at {source}")
    from telepresence.sources.video_file import VideoFrames, VideoSource
    from telepresence.sources.video_stream import MIN_FRAMES

    frames = VideoFrames(source)
    if sum(1 for _ in itertools.islice(iter(frames.advance, None), MIN_FRAMES)) < MIN_FRAMES:
        frames.require_frames()
    frames.close()
    facts = {"tracker": "live, as in a call"}
    return RehearsalClip(source.name, partial(VideoSource, source), frames.count / frames.fps, frames.fps, head, facts)

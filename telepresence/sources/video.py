"""Video files: played in a loop like a camera, or read once from end to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes
from telepresence.runtime.audio import Ear, SoundChunk
from telepresence.runtime.frames import CameraFrame
from telepresence.sources.audio import FileSound

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Containers that hold video and nothing that reaches for other files or addresses (playlists do).  FFmpeg would
# also take a text file for a terminal recording.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,ivf,h264,hevc,yuv4mpegpipe,gif"

_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}

_MAX_SIDE = 8192

_MAX_GAP = 0.1
"""Seconds of catching up after which a late picture is delivered all the same, so that what
is too heavy to decode still moves."""

_SOUND_AHEAD = 0.2
"""Seconds by which sound is told before its picture: more than pictures are apart."""

_MAX_LAG = 1.0
"""Seconds behind its own clock from which playing resumes where it is (nobody read for a while)."""


class VideoFrames(Iterator[CameraFrame]):
    """The pictures of a video file, once, in order, as fast as they are asked for.

    ``t_capture_ns`` is the time from the first picture by the file's own time stamps.  Pictures are upright
    (rotation applied) with square pixels.  A file that breaks off ends where it breaks.

    Attributes: ``fps`` nominal rate; ``count`` number of pictures that the file claims (an estimate, at
    least 1); ``width, height`` of the pictures in pixels; ``origin`` the file's time of the first picture, in seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container, self._stream = _open(path)
        self._frames = self._decode()
        self._next_id = 0
        self.origin = 0.0
        self._last = -1.0
        self.fps = _frame_rate(self._stream)
        self.count = _frame_count(self._container, self._stream, self.fps)
        try:
            first = next(self._frames)
        except StopIteration:
            self.close()
            raise UserError(f"{path}: no picture of this video can be decoded; give a whole, playable video") from None
        self._pending: VideoFrame | None = first
        self.height, self.width = self.rgb(first).shape[:2]

    def _decode(self) -> Iterator[VideoFrame]:
        import av

        try:
            yield from self._container.decode(self._stream)
        except (av.error.FFmpegError, EOFError):
            return  # the file is damaged or cut off here; what came before is good

    def _time_of(self, frame: VideoFrame) -> float:
        """Seconds since the first picture; always growing, whatever the file says."""
        interval = 1.0 / self.fps
        if frame.time is None:
            seconds = self._last + interval if self._next_id else 0.0
        else:
            if self._next_id == 0:
                self.origin = frame.time
            seconds = frame.time - self.origin
        if self._next_id and not self._last < seconds < self._last + 10.0:
            self.origin += seconds - (self._last + interval)
            seconds = self._last + interval
        return seconds

    def advance(self) -> tuple[VideoFrame, float] | None:
        """The next picture as decoded, not yet converted, with its time in seconds; None at the end."""
        frame = self._pending if self._pending is not None else next(self._frames, None)
        self._pending = None
        if frame is None:
            return None
        seconds = self._time_of(frame)
        self._last = seconds
        self._next_id += 1
        return frame, seconds

    def rgb(self, frame: VideoFrame) -> Bytes:
        """A decoded picture as (H, W, 3) uint8 sRGB, upright, with square pixels."""
        aspect = float(self._stream.sample_aspect_ratio or 1)
        width = max(1, round(frame.width * aspect))
        rgb = frame.to_ndarray(format="rgb24", width=width, height=frame.height).astype(np.uint8, copy=False)
        return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90) % 4))

    def __next__(self) -> CameraFrame:
        item = self.advance()
        if item is None:
            self.close()
            raise StopIteration
        frame, seconds = item
        return CameraFrame(self._next_id - 1, round(seconds * 1e9), self.rgb(frame))

    def close(self) -> None:
        self._container.close()


def video_frames(path: Path) -> VideoFrames:
    """Every picture of a video file, once, not paced.  Raises UserError if ``path`` is not a playable video."""
    return VideoFrames(path)


class VideoSource:
    """A video file as a camera and a microphone: in real time, in a loop.

    Pictures come when their own time stamps say so; a reader or a machine that is too slow loses pictures
    rather than pace.  The sound of a picture is told a little before the picture comes.
    """

    def __init__(self, path: Path, hear: Ear | None = None) -> None:
        """``hear`` is told the sound, on the thread that reads the pictures."""
        self.name = path.name
        self._path = path
        self._frames = VideoFrames(path)
        self._hear = hear
        self._sound = FileSound(path, _OPTIONS) if hear is not None else None
        self.fps = self._frames.fps
        self._next_id = 0
        self._start: float | None = None  # monotonic time of this round's first picture
        self._pending: tuple[VideoFrame, float] | None = None  # decoded, with the monotonic time it is due
        self._last_due = 0.0

    def read(self, timeout: float) -> CameraFrame | None:
        began = time.monotonic()
        deadline = began + timeout
        while True:
            frame, due = self._pending or self._decode_next()
            self._pending = None
            now = time.monotonic()
            if due > deadline:
                self._pending = frame, due
                time.sleep(max(deadline - now, 0.0))
                return None
            if due > now:
                time.sleep(due - now)
            elif now - due > 1.0 / self.fps and now - began < _MAX_GAP:
                self._next_id += 1
                continue  # too late for this one: catch up
            self._next_id += 1
            return CameraFrame(self._next_id - 1, int(due * 1e9), self._frames.rgb(frame))

    def _decode_next(self) -> tuple[VideoFrame, float]:
        item = self._frames.advance()
        if item is None:
            self.close()
            self._frames = VideoFrames(self._path)
            self._sound = FileSound(self._path, _OPTIONS) if self._hear is not None else None
            self._start = self._last_due + 1.0 / self.fps
            item = self._frames.advance()
            assert item is not None, "VideoFrames holds at least one picture"
        frame, seconds = item
        now = time.monotonic()
        if self._start is None:
            self._start = now
        due = self._start + seconds
        if now - due > _MAX_LAG:
            self._start += now - due
            due = now
        self._last_due = due
        self._play(seconds + _SOUND_AHEAD)
        return frame, due

    def _play(self, seconds: float) -> None:
        """Tell the sound up to ``seconds`` after the first picture."""
        if self._sound is None or self._hear is None or self._start is None:
            return
        origin = self._frames.origin
        for at, samples in self._sound.until(seconds + origin):
            if at >= origin:
                self._hear(SoundChunk(round((self._start + at - origin) * 1e9), samples))

    def close(self) -> None:
        self._frames.close()
        if self._sound is not None:
            self._sound.close()


def _open(path: Path) -> tuple[InputContainer, VideoStream]:
    import av

    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a video")
    try:
        container = av.open(str(path), container_options=_OPTIONS)
    except PermissionError:
        raise UserError(f"{path}: no permission to read this file; change its mode or copy it") from None
    except (av.error.FFmpegError, EOFError, OSError):
        raise UserError(f"{path}: not a video that can be read (empty, cut off, or another kind of file)") from None
    for stream in container.streams.video:
        context = stream.codec_context
        if stream.disposition & av.stream.Disposition.attached_pic or context is None:
            continue  # the cover of a sound file
        if not (0 < context.width <= _MAX_SIDE and 0 < context.height <= _MAX_SIDE):
            continue
        stream.thread_type = "AUTO"
        return container, stream
    container.close()
    raise UserError(f"{path}: has no picture track; give a video that shows a face")


def _frame_rate(stream: VideoStream) -> float:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 1.0 <= float(rate) <= 240.0:
            return float(rate)
    return 30.0


def _frame_count(container: InputContainer, stream: VideoStream, fps: float) -> int:
    if stream.frames:
        return int(stream.frames)
    if stream.duration and stream.time_base:
        return max(1, round(float(stream.duration * stream.time_base) * fps))
    return max(1, round((container.duration or 0) * 1e-6 * fps))

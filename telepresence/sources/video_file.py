"""Video files: played in a loop like a camera, or decoded once from start to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes
from telepresence.runtime.audio import AudioChunk, AudioListener
from telepresence.runtime.frames import CameraFrame
from telepresence.sources.file_audio import FileAudio

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Containers that hold media data and cannot reference other files or addresses (as playlists can).  Without this list
# FFmpeg would also open a text file as a terminal recording.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,ivf,h264,hevc,yuv4mpegpipe,gif"

_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}

_MAX_SIDE = 8192

_MAX_GAP = 0.1
"""Maximum time, in seconds, spent skipping late frames before one is delivered anyway, if decoding is too slow."""

_AUDIO_LEAD = 0.2
"""Lead of the audio before its frame, in seconds: more than the interval of two frames."""

_MAX_LAG = 1.0
"""Delay, in seconds, above which playback continues from the current frame instead of catching up."""


class VideoFrames(Iterator[CameraFrame]):
    """Iterator over the frames of a video file, once, in order, without pacing.

    ``t_capture_ns`` is the file's time since the first frame.  Frames are upright (rotation applied) with square
    pixels.  A truncated file ends where it is cut.  Raises UserError if ``path`` is not a playable video.

    Attributes: ``fps`` nominal frame rate; ``count`` number of frames stated by the file (an estimate, at
    least 1); ``width, height`` of the frames in pixels; ``origin`` the file's time of the first frame, in seconds.
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
            raise UserError(f"{path}: no frame of this video can be decoded: use a complete, playable video") from None
        self._pending: VideoFrame | None = first
        self.height, self.width = self.rgb(first).shape[:2]

    def _decode(self) -> Iterator[VideoFrame]:
        import av

        try:
            yield from self._container.decode(self._stream)
        except (av.error.FFmpegError, EOFError):
            return  # damaged or truncated here; the frames before are valid

    def _time_of(self, frame: VideoFrame) -> float:
        """Seconds since the first frame; always increasing, even if the file's time stamps are not."""
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
        """Next frame as decoded, not converted, with its time in seconds; None at the end."""
        frame = self._pending if self._pending is not None else next(self._frames, None)
        self._pending = None
        if frame is None:
            return None
        seconds = self._time_of(frame)
        self._last = seconds
        self._next_id += 1
        return frame, seconds

    def rgb(self, frame: VideoFrame) -> Bytes:
        """Convert a decoded frame to (H, W, 3) uint8 sRGB, upright, with square pixels."""
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
        """Close the file."""
        self._container.close()


class VideoSource:
    """A video file as a camera and a microphone, played in real time in a loop.

    Frames are delivered at their time stamps; a slow reader or machine skips frames, so that the pace holds.  The audio
    of a frame is passed on shortly before the frame.
    """

    def __init__(self, path: Path, on_audio: AudioListener | None = None) -> None:
        """``on_audio`` is called with the audio, on the thread that reads the frames."""
        self.name = path.name
        self._path = path
        self._frames = VideoFrames(path)
        self._on_audio = on_audio
        self._audio = FileAudio(path, _OPTIONS) if on_audio is not None else None
        self.fps = self._frames.fps
        self._next_id = 0
        self._start: float | None = None  # monotonic time of the first frame of this round
        self._pending: tuple[VideoFrame, float] | None = None  # decoded frame and monotonic time at which it is due
        self._last_due = 0.0

    def read(self, timeout: float) -> CameraFrame | None:
        """Next frame when it is due; None after ``timeout`` seconds."""
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
                continue  # skip a late frame to catch up
            self._next_id += 1
            return CameraFrame(self._next_id - 1, int(due * 1e9), self._frames.rgb(frame))

    def _decode_next(self) -> tuple[VideoFrame, float]:
        item = self._frames.advance()
        if item is None:
            self.close()
            self._frames = VideoFrames(self._path)
            self._audio = FileAudio(self._path, _OPTIONS) if self._on_audio is not None else None
            self._start = self._last_due + 1.0 / self.fps
            item = self._frames.advance()
            assert item is not None, "VideoFrames has at least one frame"
        frame, seconds = item
        now = time.monotonic()
        if self._start is None:
            self._start = now
        due = self._start + seconds
        if now - due > _MAX_LAG:
            self._start += now - due
            due = now
        self._last_due = due
        self._emit_audio(seconds + _AUDIO_LEAD)
        return frame, due

    def _emit_audio(self, seconds: float) -> None:
        """Pass on the audio up to ``seconds`` after the first frame."""
        if self._audio is None or self._on_audio is None or self._start is None:
            return
        origin = self._frames.origin
        for at, samples in self._audio.read_until(seconds + origin):
            if at >= origin:
                self._on_audio(AudioChunk(round((self._start + at - origin) * 1e9), samples))

    def close(self) -> None:
        """Close the file."""
        self._frames.close()
        if self._audio is not None:
            self._audio.close()


def _open(path: Path) -> tuple[InputContainer, VideoStream]:
    import av

    if not path.is_file():
        raise UserError(f"{path}: no such file: give the path of a video")
    try:
        container = av.open(str(path), container_options=_OPTIONS)
    except PermissionError:
        raise UserError(f"{path}: no permission to read this file: change its mode or copy it") from None
    except (av.error.FFmpegError, EOFError, OSError):
        raise UserError(
            f"{path}: not a readable video (empty, truncated, or another kind of file): use another file"
        ) from None
    for stream in container.streams.video:
        context = stream.codec_context
        if stream.disposition & av.stream.Disposition.attached_pic or context is None:
            continue  # cover image of an audio file
        if not (0 < context.width <= _MAX_SIDE and 0 < context.height <= _MAX_SIDE):
            continue
        stream.thread_type = "AUTO"
        return container, stream
    container.close()
    raise UserError(f"{path}: no video track: use a video that shows a face")


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

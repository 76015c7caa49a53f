"""Video files: played in a loop like a camera, or decoded once from start to end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.types import Bytes
from telepresence.runtime.audio import AudioChunk, AudioListener
from telepresence.runtime.frames import CameraFrame
from telepresence.sources.colour import SrgbConverter
from telepresence.sources.file_audio import FileAudio
from telepresence.sources.video_stream import MIN_FRAMES, MIN_SECONDS, OPTIONS, open_container, video_streams

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

log = logging.getLogger("telepresence")

_MAX_GAP = 0.1
"""Maximum time, in seconds, spent skipping late frames before one is delivered anyway, if decoding is too slow."""

_DOLBY_TAGS = ("dvh1", "dvhe", "dav1", "dva1", "dvav")
"""Codec tags of Dolby Vision streams in MP4."""

_AUDIO_LEAD = 0.2
"""Lead of the audio before its frame, in seconds: more than the interval of two frames."""

_MAX_LAG = 1.0
"""Delay, in seconds, above which playback continues from the current frame instead of catching up."""


class VideoFrames(Iterator[CameraFrame]):
    """Iterator over the frames of a video file, once, in order, without pacing.

    ``t_capture_ns`` is the file's time since the first frame.  Frames are upright (rotation applied) with square
    pixels, in sRGB.  A truncated file ends where it is cut.  Raises UserError if ``path`` is not a playable video, for
    colours that cannot be converted, and, as an iterator, where the size of the frames changes.

    Attributes: ``fps`` nominal frame rate; ``count`` number of frames stated by the file (an estimate, at
    least 1); ``width, height`` of the frames in pixels; ``origin`` the file's time of the first frame, in seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open_stream()
        self._next_id = 0
        self.origin = 0.0
        self._last = -1.0
        self.fps = _frame_rate(self._stream)
        self.count = _frame_count(self._container, self._stream, self.fps)
        assert self._pending is not None
        self.height, self.width = self.rgb(self._pending).shape[:2]

    def _open_stream(self) -> None:
        """Open the preferred stream of which a frame can be decoded, and decode that frame."""
        for index in video_streams(self.path):
            self._container = open_container(self.path)
            stream = self._container.streams[index]
            self._stream: VideoStream = cast("VideoStream", stream)
            self._stream.thread_type = "AUTO"
            self._frames = self._decode()
            self._pending: VideoFrame | None = next(self._frames, None)
            if self._pending is not None:
                context = self._stream.codec_context
                self._colours = SrgbConverter(context.codec_tag.lower() in _DOLBY_TAGS)
                self._first_aspect = context.sample_aspect_ratio
                return
            self._container.close()
        raise UserError(f"{self.path}: no frame of this video can be decoded: use a complete, playable video")

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
        """Convert a decoded frame to (H, W, 3) uint8 sRGB, upright, with square pixels.

        Raises UserError for colours that cannot be converted.
        """
        aspect = self._stream.sample_aspect_ratio
        coded = self._stream.codec_context.sample_aspect_ratio
        if coded and coded != self._first_aspect:  # it changes inside the file
            aspect = coded
        width = max(1, round(frame.width * float(aspect or 1)))
        try:
            rgb = self._colours.convert(frame, width, frame.height)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90) % 4))

    def __next__(self) -> CameraFrame:
        item = self.advance()
        if item is None:
            self.close()
            raise StopIteration
        frame, seconds = item
        rgb = self.rgb(frame)
        height, width = rgb.shape[:2]
        if (width, height) != (self.width, self.height):
            self.close()
            raise UserError(
                f"{self.path}: the size changes from {self.width}x{self.height} to {width}x{height} pixels at frame "
                f"{self._next_id - 1} ({seconds:.1f} s): cut the recording there, or bring it to one size "
                "(ffmpeg -vf scale, pad)"
            )
        return CameraFrame(self._next_id - 1, round(seconds * 1e9), rgb)

    def require_frames(self) -> None:
        """After the last frame: UserError if there were fewer than `MIN_FRAMES`, a warning if they were short."""
        if self._next_id < MIN_FRAMES:
            raise UserError(f"{self.path}: {self._shortage()}")
        if self._last + 1.0 / self.fps < MIN_SECONDS:
            log.warning("%s: %s", self.path, self._shortage())

    def warn_if_short(self) -> None:
        """After the last frame: log a warning if there were only a few."""
        if self._next_id < MIN_FRAMES or self._last + 1.0 / self.fps < MIN_SECONDS:
            log.warning("%s: %s", self.path, self._shortage())

    def _shortage(self) -> str:
        frames = "1 frame" if self._next_id == 1 else f"{self._next_id} frames"
        seconds = self._last + 1.0 / self.fps
        return f"only {frames} ({seconds:.2f} s) in this video: use a recording of at least a few seconds"

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class VideoSource:
    """A video file as a camera and a microphone, played in real time in a loop.

    Frames are delivered at their time stamps; a slow reader or machine skips frames, so that the pace holds.  The audio
    of a frame is passed on shortly before the frame.
    """

    def __init__(
        self,
        path: Path,
        on_audio: AudioListener | None = None,
        on_silence: Callable[[str], None] | None = None,
    ) -> None:
        """``on_audio`` is called with the audio, on the thread that reads the frames.

        ``on_silence`` is called once, with the reason, if the audio of the file cannot be decoded.
        """
        self.name = path.name
        self._path = path
        self._frames = VideoFrames(path)
        self._on_audio = on_audio
        self._audio = FileAudio(path, OPTIONS) if on_audio is not None else None
        if self._audio is not None and self._audio.problem is not None:
            log.warning("%s: %s", path, self._audio.problem, extra={"event": "no_audio", "stage": "capture"})
            if on_silence is not None:
                on_silence(self._audio.problem)
        self.fps = self._frames.fps
        self._next_id = 0
        self._warned = False  # whether a short file was looked for
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
            if not self._warned:
                self._frames.warn_if_short()
                self._warned = True
            self._frames = VideoFrames(self._path)
            self._audio = FileAudio(self._path, OPTIONS) if self._on_audio is not None else None
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

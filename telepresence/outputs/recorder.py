"""Recorder of a call: crash-safe MP4 video with audio, and takes (files of the rendered head states)."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from insta_runtime.errors import UserError
from insta_runtime.files import atomic_file
from insta_runtime.tracked import GrowingTake
from insta_runtime.types import HeadState
from telepresence.runtime.audio import CHANNELS, RATE, TOLERANCE_S, AudioBus, AudioChunk, AudioTimeline, Samples
from telepresence.runtime.failure_policy import one_line
from telepresence.runtime.frames import OutputFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.runtime.media_paths import media_target

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer

log = logging.getLogger("telepresence")

CLOCK_RATE: Final = 90_000
"""Ticks per second of the video's time stamps."""
FRAGMENT_S: Final = 1.0
"""Seconds of video per MP4 fragment, which is about what is lost if the program is killed."""
STILL_S: Final = 1.0
"""Seconds without a new frame after which the last frame is written again."""
TAKE_S: Final = 5.0
"""Minimum seconds between two writes of the take file."""
TAKE_SHARE: Final = 0.01
"""Maximum fraction of the recorder thread's time spent on writing the take file."""
AUDIO_DELAY_S: Final = 1.0
"""Seconds behind the video after which missing audio is written as silence."""
MAX_AHEAD_S: Final = 2.0
"""Seconds in the future beyond which the end of an audio chunk is implausible, so that the chunk is dropped."""
MAX_CHUNKS: Final = 500
"""Maximum number of audio chunks queued for writing, about ten seconds; older ones are dropped."""
QUALITY: Final = {"preset": "superfast", "tune": "zerolatency", "crf": "20"}
"""Options of the x264 encoder of the recording."""
AUDIO_BITRATE: Final = 128_000
"""Bit rate of the recorded audio in bits per second."""
PRIMING: Final = 1024
"""Number of samples that an AAC encoder inserts before the first one; time stamps are shifted to compensate."""
JOIN_S: Final = 10.0
"""Maximum seconds to wait for the recorder thread to end."""


class Recorder:
    """Records the output frames and audio of a call to a fragmented MP4 file (H.264, AAC).

    Video and audio are synchronised by their capture times, however late each arrived.  The take beside the video
    (``call.npz`` for ``call.mp4``, docs/formats.md) has one head state per frame, at the frame's time in the video; a
    second take begins when another subject drives the avatar (``call-2.npz``).

    The thread ``record`` encodes and writes; if it is too slow, older frames are dropped.  When the disk is full the
    recording ends and the call continues.
    """

    def __init__(self, path: Path, fps: int, head_sha256: str, audio: AudioBus, failed: Callable[[str], None]) -> None:
        """``fps`` is the nominal frame rate, ``head_sha256`` the checksum of the head model, written to the takes.

        ``failed`` is called at most once, with an error message, if the recording ends early.
        """
        self._path, self._fps, self._sha256, self._bus, self._failed = path, fps, head_sha256, audio, failed
        self._frames: Mailbox[OutputFrame] = Mailbox("recorder")
        self._chunks: deque[AudioChunk] = deque(maxlen=MAX_CHUNKS)
        self._stopping = threading.Event()
        self._video: _VideoFile | None = None
        self._newest: OutputFrame
        self._takes = _TakeFiles(path, fps, head_sha256)
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)

    def start(self) -> None:
        """Create the video file and start recording.

        UserError if a file exists already, cannot be written, or is no ``.mp4`` file.
        """
        for path in (self._path, self._path.with_suffix(".npz")):
            if path.exists():
                raise UserError(f"{path} exists: choose another name for --record, existing files are not overwritten")
        if self._path.suffix.lower() != ".mp4":
            raise UserError(f"--record writes an .mp4 file, not {self._path}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(exist_ok=False)
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {(error.strerror or str(error)).lower()}; choose another --record"
            ) from None
        self._bus.subscribe(self._chunks.append)
        self._thread.start()

    def push_frame(self, frame: OutputFrame) -> None:
        """Record ``frame``, displayed from its capture time on; never waits, may be called from any thread."""
        self._frames.put(frame)

    @property
    def open(self) -> bool:
        """Whether the recording is running."""
        return self._thread.is_alive() and not self._stopping.is_set()

    def stop(self) -> None:
        """End the recording and complete the files.  May be called twice, and before `start`."""
        self._bus.unsubscribe(self._chunks.append)
        self._stopping.set()
        self._frames.close()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._round()
            if self._video is not None:
                self._write_audio(self._video)
                self._video.close()
            self._takes.write()
        except Exception as error:
            self._bus.unsubscribe(self._chunks.append)
            self._stopping.set()
            reason = getattr(error, "strerror", None) or one_line(error)
            if not hasattr(error, "strerror"):  # raised by neither the disk nor an encoder
                log.error("the recording failed because of a bug", exc_info=True, extra={"event": "stage_failed"})
            self._failed(f"the recording {self._path} has ended: {reason.lower()}")

    def _round(self) -> None:
        frame = self._frames.get(STILL_S)
        if self._stopping.is_set():
            return
        if frame is not None:
            self._video = self._video or _VideoFile(self._path, self._fps, frame)
        if self._video is None:
            return
        at_ns = self._video.add_frame(frame) if frame is not None else self._video.repeat_frame()
        if at_ns is not None:
            self._newest = frame or self._newest
            self._takes.add(self._newest, at_ns)
        self._write_audio(self._video)
        self._takes.write_if_due()

    def _write_audio(self, video: _VideoFile) -> None:
        while self._chunks:
            video.add_audio(self._chunks.popleft())
        video.fill_audio()


class _VideoFile:
    """The video file, created with the first frame.  Belongs to the thread ``record``."""

    def __init__(self, path: Path, fps: int, first: OutputFrame) -> None:
        import av

        self._origin_ns = first.t_capture_ns
        # No moov box at the end of the file, and flushed to the disk after each fragment.
        flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container: OutputContainer = av.open(media_target(path), "w", format="mp4", options=flags)
        video: Any = self._container.add_stream("libx264", rate=fps, options=QUALITY)
        video.height, video.width = (side - side % 2 for side in first.rgb.shape[:2])
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, CLOCK_RATE)
        video.codec_context.gop_size = 100 * fps
        video.codec_context.thread_count = 1
        audio: Any = self._container.add_stream("aac", rate=RATE, layout="stereo")
        audio.bit_rate = AUDIO_BITRATE
        self._video, self._audio = video, audio
        self._waiting: Samples = np.zeros((0, CHANNELS), np.int16)  # samples for the next audio packet
        self._timeline = AudioTimeline()
        self._timeline.begin(self._origin_ns + PRIMING * 1e9 / RATE)
        self._silent = True  # the newest samples are filled-in silence
        self._last: av.VideoFrame | None = None
        self._last_pts = -1
        self._written_at = 0.0  # monotonic seconds
        self._keyframe_pts = -CLOCK_RATE * 1_000

    def add_frame(self, frame: OutputFrame) -> int | None:
        """Append ``frame`` and return its time in the video (ns); None if a later frame was already written."""
        import av

        pts = round((frame.t_capture_ns - self._origin_ns) * 1e-9 * CLOCK_RATE)
        if pts <= self._last_pts:
            return None
        converted = av.VideoFrame.from_ndarray(frame.rgb, format="rgb24")
        self._last = converted.reformat(width=self._video.width, height=self._video.height, format="yuv420p")
        return self._write(pts)

    def repeat_frame(self) -> int:
        """Append the last frame once more, since no new one came, and return its time in the video (ns)."""
        return self._write(self._last_pts + round((time.monotonic() - self._written_at) * CLOCK_RATE))

    def add_audio(self, chunk: AudioChunk) -> None:
        """Append ``chunk`` at its capture time."""
        if not self._timeline.end_ns < chunk.end_ns < time.monotonic_ns() + MAX_AHEAD_S * 1e9:
            return
        self._fill_silence(chunk.t_capture_ns)
        # After silence the chunk is placed exactly, to the sample; after another chunk it continues without a gap.
        self._encode(self._timeline.append(chunk, 0.0 if self._silent else TOLERANCE_S))
        self._silent = False

    def fill_audio(self) -> None:
        """Fill audio that is missing for longer than `AUDIO_DELAY_S` with silence, so that the file never waits."""
        self._fill_silence(self._origin_ns + (self._last_pts / CLOCK_RATE - AUDIO_DELAY_S) * 1e9)

    def close(self) -> None:
        """Finish the file."""
        self._fill_silence(self._origin_ns + self._last_pts * 1e9 / CLOCK_RATE)
        self._container.mux(self._audio.encode())
        self._container.mux(self._video.encode())
        self._container.close()

    def _write(self, pts: int) -> int:
        from av.video.frame import PictureType

        assert self._last is not None, "a frame is added first"
        keyframe = pts - self._keyframe_pts >= FRAGMENT_S * CLOCK_RATE
        if keyframe:
            self._keyframe_pts = pts
        self._last.pts, self._last.time_base = pts, Fraction(1, CLOCK_RATE)
        self._last.pict_type = PictureType.I if keyframe else PictureType.NONE
        self._container.mux(self._video.encode(self._last))
        self._last_pts, self._written_at = pts, time.monotonic()
        return round(pts * 1e9 / CLOCK_RATE)

    def _fill_silence(self, until_ns: float) -> None:
        """Append silence up to the capture time ``until_ns``, in steps of at most a second."""
        while (missing := round((until_ns - self._timeline.end_ns) * 1e-9 * RATE)) > TOLERANCE_S * RATE:
            silence = np.zeros((min(missing, RATE), CHANNELS), np.int16)
            self._encode(self._timeline.append(AudioChunk(round(self._timeline.end_ns), silence)))
            self._silent = True

    def _encode(self, samples: Samples) -> None:
        """Encode the samples that fill whole packets, and keep the rest for later."""
        import av

        waiting = np.concatenate([self._waiting, samples])
        step = self._audio.codec_context.frame_size or len(waiting)
        while len(waiting) >= step > 0:
            block = av.AudioFrame.from_ndarray(waiting[:step].reshape(1, -1), format="s16", layout="stereo")
            block.sample_rate, block.time_base = RATE, Fraction(1, RATE)
            block.pts = PRIMING + self._timeline.count - len(waiting)
            self._container.mux(self._audio.encode(block))
            waiting = waiting[step:]
        self._waiting = waiting


class _TakeFiles:
    """The take files beside a video, one for each subject."""

    def __init__(self, video: Path, fps: int, head_sha256: str) -> None:
        self._video, self._fps, self._sha256 = video, fps, head_sha256
        self._number = 0
        self._take: GrowingTake | None = None
        self._subject: str | None = None  # fingerprint of the identity code
        self._written = 0
        self._next = 0.0

    def add(self, frame: OutputFrame, at_ns: int) -> None:
        """Add the head state of the frame at ``at_ns`` in the video; for a card, the last state, marked invalid."""
        from insta_runtime.head import fingerprint

        drawn = frame.render_inputs
        if drawn is not None and drawn.shape is not None:
            subject = fingerprint(drawn.shape)
            if subject != self._subject:
                self.write()
                height, width = frame.rgb.shape[:2]
                window = (0.0, 0.0, float(width))
                camera = drawn.camera.scaled(width, height)
                self._take = GrowingTake(drawn.shape, camera, window, self._sha256, self._fps)
                self._subject, self._number, self._written = subject, self._number + 1, 0
            self._state: HeadState = drawn.state
        if self._take is not None:
            self._take.add(self._state.at(at_ns), drawn is not None and drawn.shape is not None)

    def write_if_due(self) -> None:
        """Write the take if its share of the time allows it."""
        if time.monotonic() >= self._next:
            began = time.monotonic()
            self.write()
            self._next = began + max(TAKE_S, (time.monotonic() - began) / TAKE_SHARE)

    def write(self) -> None:
        """Replace the take file by one with all states so far."""
        if self._take is None or len(self._take) == self._written:
            return
        suffix = "" if self._number == 1 else f"-{self._number}"
        path = self._video.with_name(f"{self._video.stem}{suffix}.npz")
        with atomic_file(path) as file:
            self._take.write(file)
        self._written = len(self._take)

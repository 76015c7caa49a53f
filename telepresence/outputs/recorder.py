"""Records the call: a video with sound that is whole at every moment, and beside it the take of what moved the face."""

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
from telepresence.runtime.audio import CHANNELS, RATE, TOLERANCE_S, Samples, AudioBus, AudioChunk, AudioTimeline
from telepresence.runtime.frames import OutputFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.runtime.policy import one_line

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer

log = logging.getLogger("telepresence")

CLOCK_RATE: Final = 90_000
FRAGMENT_S: Final = 1.0
"""Seconds of a fragment: about as much is lost when the program is killed."""
STILL_S: Final = 1.0
"""A picture that stands still is written again so often."""
TAKE_S: Final = 5.0
"""Seconds between writings of the take, at least."""
TAKE_SHARE: Final = 0.01
"""Part of the time that writing it may take."""
WAIT_FOR_SOUND_S: Final = 1.0
"""Sound that is later than its pictures by more is written as silence."""
MAX_AHEAD_S: Final = 2.0
"""Sound that claims to be of a later future is none."""
BACKLOG: Final = 500
"""Chunks of sound that may wait for the disk: ten seconds."""
QUALITY: Final = {"preset": "superfast", "tune": "zerolatency", "crf": "20"}
SOUND_BITRATE: Final = 128_000
PRIMING: Final = 1024
"""Samples that an AAC encoder puts before the first; sound begins so much after the first picture, and lies right."""
JOIN_S: Final = 10.0


class Recorder:
    """Writes what viewers see and hear to ``path``, a fragmented MP4 (H.264, AAC), by capture times.

    Picture and sound lie together as they were captured, however late each came.  The take beside it
    (``call.npz`` for ``call.mp4``, docs/formats.md) has a state for every picture, at the time that the picture has in
    the video; when somebody else comes before the camera a second one begins (``call-2.npz``).

    The thread ``record`` encodes and writes; the newest picture wins where it is too slow.  When the disk is full the
    recording ends, and the call goes on.
    """

    def __init__(self, path: Path, fps: int, head_sha256: str, sound: AudioBus, failed: Callable[[str], None]) -> None:
        """``fps`` is nominal; ``failed`` hears, at most once, why nothing is recorded any more."""
        self._path, self._fps, self._sha256, self._bus, self._failed = path, fps, head_sha256, sound, failed
        self._pictures: Mailbox[OutputFrame] = Mailbox("recorder")
        self._chunks: deque[AudioChunk] = deque(maxlen=BACKLOG)
        self._stopping = threading.Event()
        self._film: _Film | None = None
        self._newest: OutputFrame
        self._takes = _Takes(path, fps, head_sha256)
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)

    def start(self) -> None:
        """Begin the files.  UserError if they cannot be written, or are there."""
        for path in (self._path, self._path.with_suffix(".npz")):
            if path.exists():
                raise UserError(f"{path} exists: choose another name for --record, nothing is written over")
        if self._path.suffix.lower() != ".mp4":
            raise UserError(f"--record writes an .mp4 file, not {self._path}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(exist_ok=False)
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {(error.strerror or str(error)).lower()}") from None
        self._bus.listen(self._chunks.append)
        self._thread.start()

    def push_frame(self, frame: OutputFrame) -> None:
        """Record ``frame`` from its capture time on; never waits, any thread."""
        self._pictures.put(frame)

    @property
    def open(self) -> bool:
        """Whether anything is recorded."""
        return self._thread.is_alive() and not self._stopping.is_set()

    def stop(self) -> None:
        """Finish the files; may be called twice, and without a start."""
        self._bus.forget(self._chunks.append)
        self._stopping.set()
        self._pictures.close()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._round()
            if self._film is not None:
                self._hear(self._film)
                self._film.close()
            self._takes.write()
        except Exception as error:
            self._bus.forget(self._chunks.append)
            self._stopping.set()
            reason = getattr(error, "strerror", None) or one_line(error)
            if not hasattr(error, "strerror"):  # neither the disk nor an encoder
                log.error("a bug has ended the recording", exc_info=True, extra={"event": "stage_failed"})
            self._failed(f"the recording {self._path} has ended: {reason.lower()}")

    def _round(self) -> None:
        frame = self._pictures.get(STILL_S)
        if self._stopping.is_set():
            return
        if frame is not None:
            self._film = self._film or _Film(self._path, self._fps, frame)
        if self._film is None:
            return
        at_ns = self._film.picture(frame) if frame is not None else self._film.still()
        if at_ns is not None:
            self._newest = frame or self._newest
            self._takes.add(self._newest, at_ns)
        self._hear(self._film)
        self._takes.write_now_and_then()

    def _hear(self, film: _Film) -> None:
        while self._chunks:
            film.sound(self._chunks.popleft())
        film.catch_up()


class _Film:
    """The video file, from the first picture on; belongs to the thread ``record``."""

    def __init__(self, path: Path, fps: int, first: OutputFrame) -> None:
        import av

        self._origin_ns = first.t_capture_ns
        # Without a moov box at the end, and on the disk after each fragment.
        flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container: OutputContainer = av.open(str(path), "w", format="mp4", options=flags)
        video: Any = self._container.add_stream("libx264", rate=fps, options=QUALITY)
        video.height, video.width = (side - side % 2 for side in first.rgb.shape[:2])
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, CLOCK_RATE)
        video.codec_context.gop_size = 100 * fps
        video.codec_context.thread_count = 1
        audio: Any = self._container.add_stream("aac", rate=RATE, layout="stereo")
        audio.bit_rate = SOUND_BITRATE
        self._video, self._audio = video, audio
        self._waiting: Samples = np.zeros((0, CHANNELS), np.int16)  # for a whole packet
        self._line = AudioTimeline()
        self._line.begin(self._origin_ns + PRIMING * 1e9 / RATE)
        self._silent = True  # so far
        self._last: av.VideoFrame | None = None
        self._last_pts = -1
        self._shown_at = 0.0  # monotonic seconds
        self._keyframe_pts = -CLOCK_RATE * 1_000

    def picture(self, frame: OutputFrame) -> int | None:
        """Append ``frame``; its time in the video in ns, None where a later one is there already."""
        import av

        pts = round((frame.t_capture_ns - self._origin_ns) * 1e-9 * CLOCK_RATE)
        if pts <= self._last_pts:
            return None
        picture = av.VideoFrame.from_ndarray(frame.rgb, format="rgb24")
        self._last = picture.reformat(width=self._video.width, height=self._video.height, format="yuv420p")
        return self._write(pts)

    def still(self) -> int:
        """Append the last picture once more, as nothing has moved since; its time in the video in ns."""
        return self._write(self._last_pts + round((time.monotonic() - self._shown_at) * CLOCK_RATE))

    def sound(self, chunk: AudioChunk) -> None:
        """Append ``chunk`` at its capture time."""
        if not self._line.end_ns < chunk.end_ns < time.monotonic_ns() + MAX_AHEAD_S * 1e9:
            return
        self._silence(chunk.t_capture_ns)
        # After silence it begins where it belongs, to the sample; then it goes on.
        self._encode(self._line.append(chunk, 0.0 if self._silent else TOLERANCE_S))
        self._silent = False

    def catch_up(self) -> None:
        """Silence for what was not said, so that the file never waits for sound."""
        self._silence(self._origin_ns + (self._last_pts / CLOCK_RATE - WAIT_FOR_SOUND_S) * 1e9)

    def close(self) -> None:
        """Finish the file."""
        self._silence(self._origin_ns + self._last_pts * 1e9 / CLOCK_RATE)
        self._container.mux(self._audio.encode())
        self._container.mux(self._video.encode())
        self._container.close()

    def _write(self, pts: int) -> int:
        from av.video.frame import PictureType

        assert self._last is not None, "a picture was given"
        keyframe = pts - self._keyframe_pts >= FRAGMENT_S * CLOCK_RATE
        if keyframe:
            self._keyframe_pts = pts
        self._last.pts, self._last.time_base = pts, Fraction(1, CLOCK_RATE)
        self._last.pict_type = PictureType.I if keyframe else PictureType.NONE
        self._container.mux(self._video.encode(self._last))
        self._last_pts, self._shown_at = pts, time.monotonic()
        return round(pts * 1e9 / CLOCK_RATE)

    def _silence(self, until_ns: float) -> None:
        """Fill up to ``until_ns`` in steps of a second."""
        while (missing := round((until_ns - self._line.end_ns) * 1e-9 * RATE)) > TOLERANCE_S * RATE:
            silence = np.zeros((min(missing, RATE), CHANNELS), np.int16)
            self._encode(self._line.append(AudioChunk(round(self._line.end_ns), silence)))
            self._silent = True

    def _encode(self, samples: Samples) -> None:
        """Encode what makes whole packets, and keep the rest."""
        import av

        waiting = np.concatenate([self._waiting, samples])
        step = self._audio.codec_context.frame_size or len(waiting)
        while len(waiting) >= step > 0:
            block = av.AudioFrame.from_ndarray(waiting[:step].reshape(1, -1), format="s16", layout="stereo")
            block.sample_rate, block.time_base = RATE, Fraction(1, RATE)
            block.pts = PRIMING + self._line.count - len(waiting)
            self._container.mux(self._audio.encode(block))
            waiting = waiting[step:]
        self._waiting = waiting


class _Takes:
    """The takes beside a video, one for each person."""

    def __init__(self, video: Path, fps: int, head_sha256: str) -> None:
        self._video, self._fps, self._sha256 = video, fps, head_sha256
        self._number = 0
        self._take: GrowingTake | None = None
        self._whose: str | None = None
        self._written = 0
        self._next = 0.0

    def add(self, frame: OutputFrame, at_ns: int) -> None:
        """The state of the picture that the video has at ``at_ns``; of a card, the last one, not valid."""
        from insta_runtime.head import fingerprint

        drawn = frame.render_inputs
        if drawn is not None and drawn.shape is not None:
            whose = fingerprint(drawn.shape)
            if whose != self._whose:
                self.write()
                height, width = frame.rgb.shape[:2]
                window = (0.0, 0.0, float(width))
                camera = drawn.camera.scaled(width, height)
                self._take = GrowingTake(drawn.shape, camera, window, self._sha256, self._fps)
                self._whose, self._number, self._written = whose, self._number + 1, 0
            self._state: HeadState = drawn.state
        if self._take is not None:
            self._take.add(self._state.at(at_ns), drawn is not None and drawn.shape is not None)

    def write_now_and_then(self) -> None:
        """Write what there is, seldom enough not to be felt."""
        if time.monotonic() >= self._next:
            began = time.monotonic()
            self.write()
            self._next = began + max(TAKE_S, (time.monotonic() - began) / TAKE_SHARE)

    def write(self) -> None:
        """Put all states so far in the place of those that were written before."""
        if self._take is None or len(self._take) == self._written:
            return
        suffix = "" if self._number == 1 else f"-{self._number}"
        path = self._video.with_name(f"{self._video.stem}{suffix}.npz")
        with atomic_file(path) as file:
            self._take.write(file)
        self._written = len(self._take)

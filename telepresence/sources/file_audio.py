"""Audio of a video file, decoded in step with its frames."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from telepresence.runtime.audio import CHANNELS, RATE, Samples
from telepresence.runtime.media_paths import media_target

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.container import InputContainer

log = logging.getLogger("telepresence")

BLOCK: Final = RATE // 50
"""Number of samples in one block: 20 ms."""
JUMP_S: Final = 0.05
"""Deviation of a time stamp from the expected one, in seconds, above which it is a gap or a cut."""
TRIED_PACKETS: Final = 50
"""Number of packets of a stream of which one must be decodable."""


class FileAudio:
    """Decodes the first audio stream of a file that can be decoded, from its start; without one it yields nothing.

    Packets that are damaged are left out.  A stream can be undecodable because its codec is unknown, as Apple's APAC,
    which phones record beside AAC.

    Attributes:
        problem: in words, why there is no sound although the file has audio; None otherwise.
    """

    def __init__(self, path: Path, options: dict[str, str]) -> None:
        """``options``: the same container options as for the video stream."""
        import av

        self.problem: str | None = None
        self._container: InputContainer | None = None
        self._pending: tuple[float, Samples] | None = None
        self._blocks: Iterator[tuple[float, Samples]] = iter(())
        try:
            index, self.problem = _choose(path, options)
            if index is not None:
                container = av.open(media_target(path), "r", container_options=options)
                self._container, self._blocks = container, self._decode(container, index)
        except (av.error.FFmpegError, EOFError, OSError, ValueError):
            pass

    def read_until(self, seconds: float) -> Iterator[tuple[float, Samples]]:
        """Yield the blocks before ``seconds`` that were not read yet: file time of the first sample, and samples."""
        while (block := self._pending or next(self._blocks, None)) is not None:
            self._pending = None
            if block[0] >= seconds:
                self._pending = block
                return
            yield block

    def close(self) -> None:
        """Close the file; can be called twice."""
        self._blocks, self._pending = iter(()), None
        if self._container is not None:
            self._container.close()

    @staticmethod
    def _decode(container: InputContainer, index: int) -> Iterator[tuple[float, Samples]]:
        expected: float | None = None
        resampler: AudioResampler | None = None
        layout: tuple[str, str, int] | None = None
        for frame in _frames(container, index):
            if resampler is None or layout != (frame.format.name, frame.layout.name, frame.sample_rate):
                layout = frame.format.name, frame.layout.name, frame.sample_rate
                resampler = _resampler()
            for stamp, samples in _resampled(resampler, frame):
                if expected is None or (stamp is not None and abs(stamp - expected) > JUMP_S):
                    expected = stamp or 0.0
                yield expected, samples
                expected += len(samples) / RATE


def _choose(path: Path, options: dict[str, str]) -> tuple[int | None, str | None]:
    """Index of the first audio stream that can be decoded, or None and, if there is any audio, why it is silent."""
    import av

    with av.open(media_target(path), "r", container_options=options) as container:
        count = len(container.streams.audio)
    for number in range(count):
        with av.open(media_target(path), "r", container_options=options) as container:
            stream = container.streams.audio[number]
            if stream.codec_context is None:  # an unknown codec
                continue
            for frame in _frames(container, stream.index, TRIED_PACKETS):
                if list(_resampled(_resampler(BLOCK // 20), frame)):
                    return stream.index, None
    if not count:
        return None, None
    streams = "the audio stream" if count == 1 else f"none of the {count} audio streams"
    verb = "cannot" if count == 1 else "can"
    return None, f"{streams} of this file {verb} be decoded, so it has no sound: convert the audio to AAC"


def _frames(container: InputContainer, index: int, most: int | None = None) -> Iterator[AudioFrame]:
    """Decode the audio stream ``index``, leaving damaged packets out; at most the first ``most`` packets."""
    import av

    stream = container.streams[index]
    count = 0
    try:
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    if isinstance(frame, av.AudioFrame):
                        yield frame
            except (av.error.InvalidDataError, av.error.PatchWelcomeError):
                pass
            count += 1
            if most is not None and count >= most:
                return
    except (av.error.FFmpegError, EOFError, ValueError, NotImplementedError):
        return  # damaged or truncated here, or there is no decoder; the frames before are valid


def _resampler(block: int = BLOCK) -> AudioResampler:
    import av

    return av.AudioResampler(format="s16", layout="stereo", rate=RATE, frame_size=block)


def _resampled(resampler: AudioResampler, frame: AudioFrame) -> Iterator[tuple[float | None, Samples]]:
    """Time in seconds and stereo samples of blocks; nothing of a frame whose channels cannot be mixed to stereo."""
    import av

    try:
        blocks = resampler.resample(frame)
    except (av.error.FFmpegError, ValueError):
        return
    for block in blocks:
        yield block.time, np.asarray(block.to_ndarray(), dtype=np.int16).reshape(-1, CHANNELS)

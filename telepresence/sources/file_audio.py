"""Audio of a video file, decoded in step with its frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from telepresence.runtime.audio import CHANNELS, RATE, Samples

if TYPE_CHECKING:
    from av.container import InputContainer

BLOCK: Final = RATE // 50
"""Number of samples in one block: 20 ms."""
JUMP_S: Final = 0.05
"""Deviation of a time stamp from the expected one, in seconds, above which it is a gap or a cut."""


class FileAudio:
    """Decodes the first audio stream of a file from its start; without audio, or if damaged, it yields nothing."""

    def __init__(self, path: Path, options: dict[str, str]) -> None:
        """``options``: the same container options as for the video stream."""
        import av

        self._container: InputContainer | None = None
        self._pending: tuple[float, Samples] | None = None
        self._blocks: Iterator[tuple[float, Samples]] = iter(())
        try:
            self._container = av.open(str(path), container_options=options)
            if self._container.streams.audio:
                self._blocks = self._decode(self._container)
        except (av.error.FFmpegError, EOFError, OSError):
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
    def _decode(container: InputContainer) -> Iterator[tuple[float, Samples]]:
        import av

        resampler = av.AudioResampler(format="s16", layout="stereo", rate=RATE, frame_size=BLOCK)
        expected: float | None = None
        try:
            for frame in container.decode(audio=0):
                for block in resampler.resample(frame):
                    samples = np.asarray(block.to_ndarray(), dtype=np.int16).reshape(-1, CHANNELS)
                    stamp = block.time
                    if expected is None or (stamp is not None and abs(stamp - expected) > JUMP_S):
                        expected = stamp or 0.0
                    yield expected, samples
                    expected += len(samples) / RATE
        except (av.error.FFmpegError, EOFError, ValueError):
            return  # damaged or truncated here; the blocks before are valid

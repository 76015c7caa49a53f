"""The sound track of a video file, read along with its pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from telepresence.runtime.audio import CHANNELS, RATE, Samples

if TYPE_CHECKING:
    from av.container import InputContainer

BLOCK: Final = RATE // 50
"""Samples that come at a time: 20 ms."""
JUMP_S: Final = 0.05
"""Time stamps that are off by more are meant so: a hole in the sound, or a cut."""


class FileSound:
    """Decodes the first sound track of a file from its begin on; a file without one, or a damaged one, is silent."""

    def __init__(self, path: Path, options: dict[str, str]) -> None:
        """``options`` of the container, as its pictures are opened with."""
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

    def until(self, seconds: float) -> Iterator[tuple[float, Samples]]:
        """What comes before ``seconds`` and was not read yet: the time of its first sample by the file, and samples."""
        while (block := self._pending or next(self._blocks, None)) is not None:
            self._pending = None
            if block[0] >= seconds:
                self._pending = block
                return
            yield block

    def close(self) -> None:
        """May be called twice."""
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
            return  # damaged or cut off here; what came before is good

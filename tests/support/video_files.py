"""Small video files for tests, with several streams, sizes and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


@dataclass(frozen=True)
class Track:
    """A video stream of a test file: one colour, so that it can be recognised.

    ``mark``: disposition of the stream, None for the container's own.
    """

    colour: tuple[int, int, int]
    frames: int = 20
    side: tuple[int, int] = (96, 64)
    mark: av.stream.Disposition | None = None
    fps: int = 20
    codec: str = "libx264"


def write_tracks(path: Path, tracks: Sequence[Track], format: str | None = None) -> Path:
    """A file with these video streams, in this order, interleaved by time."""
    with av.open(str(path), "w", format=format) as container:
        made: list[tuple[Fraction, int, Any]] = []
        for number, track in enumerate(tracks):
            options = {"crf": "12", "g": "5"} if track.codec == "libx264" else {}
            stream: Any = container.add_stream(track.codec, rate=track.fps, options=options)
            stream.width, stream.height = track.side
            stream.pix_fmt = "yuvj420p" if track.codec == "mjpeg" else "yuv420p"
            stream.codec_context.time_base = Fraction(1, track.fps)
            if track.mark is not None:
                stream.disposition = track.mark
            made += [(Fraction(i, track.fps), number, (stream, track, i)) for i in range(track.frames)]
        for _, _, (stream, track, i) in sorted(made, key=lambda each: each[:2]):
            rgb = np.full((track.side[1], track.side[0], 3), track.colour, np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, track.fps)
            container.mux(stream.encode(frame))
        for stream in container.streams.video:
            container.mux(stream.encode())
    return path


def write_sizes(path: Path, pictures: Sequence[np.ndarray], fps: int = 20) -> Path:
    """A WebM or Matroska file whose frames, (H, W, 3) uint8, change in size, as a concatenation of recordings has."""
    with av.open(str(path), "w") as container:
        encoder: Any = None
        first: Any = None
        for number, rgb in enumerate(pictures):
            height, width = rgb.shape[:2]
            if encoder is None or (encoder.width, encoder.height) != (width, height):
                if encoder is not None:
                    _mux(container, first, encoder.encode(None))
                encoder = av.CodecContext.create("libvpx", "w")
                encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
                encoder.time_base, encoder.framerate, encoder.bit_rate = Fraction(1, fps), Fraction(fps), 4_000_000
                encoder.options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
                if first is None:
                    first = container.add_stream("libvpx", rate=fps)
                    first.width, first.height, first.pix_fmt = width, height, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            _mux(container, first, encoder.encode(frame))
        _mux(container, first, encoder.encode(None))
    return path


def _mux(container: Any, stream: Any, packets: Sequence[Any]) -> None:
    for packet in packets:
        packet.stream = stream
        container.mux(packet)

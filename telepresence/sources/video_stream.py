"""Opening of video files, and the choice of the video stream that a person means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from insta_runtime.errors import UserError
from telepresence.runtime.media_paths import media_target

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Containers that hold media data and cannot reference other files or addresses (as playlists can).  Without this list
# FFmpeg would also open a text file as a terminal recording.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,ivf,h264,hevc,yuv4mpegpipe,gif"

OPTIONS: Final = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
"""Options with which FFmpeg opens a user's video."""
MIN_FRAMES: Final = 10
"""Number of frames below which a stream is taken for a thumbnail, and a recording is too short."""
MIN_SECONDS: Final = 0.5
"""Duration in seconds below which a recording is short."""

_MAX_SIDE = 8192
_COUNTED_PACKETS = 3000
"""Maximum number of packets that are read to compare the streams of a file."""
_FEWER = 3
"""Ratio of numbers of frames above which the stream with fewer frames is taken for a preview."""
_SIMILAR = 0.8
"""Ratio of durations, or of numbers of frames, above which two streams count as equally long."""


def open_container(path: Path) -> InputContainer:
    """Open a video file.  Raises UserError if it does not exist or is not a video."""
    import av

    if not path.is_file():
        raise UserError(f"{path}: no such file: give the path of a video")
    try:
        return av.open(media_target(path), "r", container_options=OPTIONS)
    except PermissionError:
        raise UserError(f"{path}: no permission to read this file: change its mode or copy it") from None
    except (av.error.FFmpegError, EOFError, OSError):
        raise UserError(
            f"{path}: not a readable video (empty, truncated, or another kind of file): use another file"
        ) from None


def video_streams(path: Path) -> list[int]:
    """Indices of the video streams of a file, the one that a person means first.

    Cover images and streams of unknown codecs are left out.  A stream of few frames beside others is a thumbnail or a
    preview and comes last, even if it is marked as default: programs that write MP4 mark the first one.  Then streams
    that are marked as default come first, then longer ones, then larger ones.  Raises UserError if there is none.
    """
    import av

    container = open_container(path)
    try:
        streams = [stream for stream in container.streams.video if _is_video(stream)]
        if not streams:
            raise UserError(f"{path}: no video track: use a video that shows a face")
        if len(streams) == 1:
            return [streams[0].index]
        try:
            spans = _measure(container, streams)
        except (av.error.FFmpegError, EOFError):
            spans = {}
        return [stream.index for stream in _ranked(streams, spans)]
    finally:
        container.close()


def _is_video(stream: VideoStream) -> bool:
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    if stream.disposition & pictures:
        return False
    context = stream.codec_context
    return context is not None and 0 < context.width <= _MAX_SIDE and 0 < context.height <= _MAX_SIDE


def _measure(container: InputContainer, streams: Sequence[VideoStream]) -> dict[int, tuple[int, float]]:
    """Number of packets and duration in seconds of each stream, within the first `_COUNTED_PACKETS` packets."""
    counts = dict.fromkeys((stream.index for stream in streams), 0)
    times: dict[int, list[float]] = {index: [] for index in counts}
    for number, packet in enumerate(container.demux(*streams)):
        if packet.size:
            counts[packet.stream_index] += 1
            if packet.pts is not None and packet.time_base is not None:
                times[packet.stream_index].append(float(packet.pts * packet.time_base))
        if number >= _COUNTED_PACKETS:
            break
    return {index: (counts[index], max(at) - min(at) if at else 0.0) for index, at in times.items()}


def _ranked(streams: Sequence[VideoStream], spans: dict[int, tuple[int, float]]) -> list[VideoStream]:
    """``streams`` in order of preference; ``spans`` has number of packets and duration of each."""
    from av.stream import Disposition

    durations, counts = {}, {}
    for stream in streams:
        counts[stream.index], seconds = spans.get(stream.index, (0, 0.0))
        stated = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        durations[stream.index] = max(seconds, stated)
    longest, most = max(durations.values()), max(counts.values())

    def rank(stream: VideoStream) -> tuple[bool, bool, bool, bool, int]:
        count, context = counts[stream.index], stream.codec_context
        return (
            count < max(min(MIN_FRAMES, most), most / _FEWER) or durations[stream.index] < longest / 2,
            not stream.disposition & Disposition.default,
            durations[stream.index] < _SIMILAR * longest,
            count < _SIMILAR * most,
            -context.width * context.height,
        )

    return sorted(streams, key=rank)

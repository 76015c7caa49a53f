"""Codecs, pixel formats and time stamps of video files as cameras and programs write them."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from insta_runtime.errors import UserError
from telepresence.sources.video_file import VideoFrames

WIDTH, HEIGHT, FPS = 96, 64, 20


def halves(width=WIDTH, height=HEIGHT, level=200):
    """Red left half, blue right half."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, : width // 2, 0] = rgb[:, width // 2 :, 2] = level
    return rgb


def write(
    path, codec, pixels, *, size=(WIDTH, HEIGHT), times=range(12), level=lambda number: 200, options=None, **more
):
    """A clip of `halves` at ``times``, in frames; ``more`` are attributes of the codec context."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, FPS)
        for name, value in more.items():
            setattr(stream.codec_context, name, value)
        for number, at in enumerate(times):
            frame = av.VideoFrame.from_ndarray(halves(*size, level(number)), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("vp9.webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
        ("av1.mkv", "libsvtav1", "yuv420p", {"preset": "12"}),
        ("ffv1.mkv", "ffv1", "yuv444p", {}),
        ("prores.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
        ("deep.mkv", "libx264", "yuv422p10le", {}),
        ("hevc.mp4", "libx265", "yuv420p", {"x265-params": "log-level=none"}),
        ("mjpeg.avi", "mjpeg", "yuvj422p", {}),
        ("rgb.mkv", "libx264rgb", "rgb24", {}),
        ("raw.h264", "libx264", "yuv420p", {}),
    ],
)
def test_codecs_and_pixel_formats_are_decoded(tmp_path, name, codec, pixels, options, root):
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg is built without {codec}")
    # In a process of its own: as root the encoder of SVT-AV1 gives its whole process real-time priority.
    arguments = f"pathlib.Path({str(tmp_path / name)!r}), {codec!r}, {pixels!r}, options={options!r}"
    program = f"import pathlib; from {write.__module__} import write; write({arguments})"
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
    frames = list(VideoFrames(tmp_path / name))
    assert len(frames) == 12
    times = np.array([frame.t_capture_ns for frame in frames]) / 1e9
    assert np.all(np.diff(times) > 0), "also without time stamps"
    left, right = frames[6].rgb[:, :40].mean((0, 1)), frames[6].rgb[:, 56:].mean((0, 1))
    assert np.abs(left - [200, 0, 0]).max() < 25
    assert np.abs(right - [0, 0, 200]).max() < 25


@pytest.mark.parametrize("size", [(97, 65), (33, 64), (96, 31)])
def test_odd_sizes(tmp_path, size):
    frames = VideoFrames(write(tmp_path / "odd.mkv", "ffv1", "yuv444p", size=size))
    assert next(frames).rgb.shape == (size[1], size[0], 3)


def test_interlaced_video_is_whole_pictures(tmp_path):
    path = write(tmp_path / "interlaced.mp4", "libx264", "yuv420p", options={"x264-params": "interlaced=1"})
    assert [frame.rgb.shape for frame in VideoFrames(path)] == [(HEIGHT, WIDTH, 3)] * 12


def test_a_variable_frame_rate_keeps_its_times(tmp_path):
    times = [0, 1, 2, 5, 6, 11, 12, 13, 20, 21, 22, 30]
    path = write(tmp_path / "variable.mkv", "libx264", "yuv420p", times=times)
    found = [frame.t_capture_ns / 1e9 for frame in VideoFrames(path)]
    np.testing.assert_allclose(found, np.array(times) / FPS, atol=2e-3)


def test_a_black_start_and_a_late_start_are_ordinary_frames(tmp_path):
    path = write(
        tmp_path / "late.mkv",
        "libx264",
        "yuv420p",
        times=range(100, 112),
        level=lambda number: 0 if number < 4 else 200,
    )
    frames = list(VideoFrames(path))
    assert [frame.rgb.max() > 100 for frame in frames] == [False] * 4 + [True] * 8
    assert frames[0].t_capture_ns == 0, "time counts from the first frame"


def test_an_edit_list_that_cuts_the_start_is_applied(tmp_path):
    """B-frames give MP4 an edit list; one that starts two frames later hides these."""
    path = write(tmp_path / "edited.mp4", "libx264", "yuv420p", options={"g": "1", "bf": "0"})
    written = bytearray(path.read_bytes())
    at = written.index(b"elst") + 8
    entry = at + 4
    media_time = 2 * av.open(str(path)).streams.video[0].time_base.denominator // FPS
    written[entry + 4 : entry + 8] = media_time.to_bytes(4, "big")
    path.write_bytes(written)
    assert len(list(VideoFrames(path))) == 10


def test_the_pixel_shape_may_change_inside_a_file(tmp_path):
    """Two H.264 streams of one size, the second anamorphic, one after the other."""
    square = write(tmp_path / "square.h264", "libx264", "yuv420p")
    wide = write(tmp_path / "wide.h264", "libx264", "yuv420p", sample_aspect_ratio=Fraction(2, 1))
    joined = tmp_path / "joined.h264"
    joined.write_bytes(square.read_bytes() + wide.read_bytes())
    frames = VideoFrames(joined)
    shapes = []
    while (item := frames.advance()) is not None:
        shapes.append(frames.rgb(item[0]).shape[1])
    assert len(shapes) == 24
    assert set(shapes[:8]) == {WIDTH}, "the decoder is up to four frames ahead of what it shows"
    assert set(shapes[12:]) == {2 * WIDTH}
    with pytest.raises(UserError, match="96x64 to 192x64"):
        list(VideoFrames(joined))

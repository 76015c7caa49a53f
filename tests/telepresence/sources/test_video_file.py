"""Video files as sources: frames, pacing, and refused files."""

from __future__ import annotations

import wave
from fractions import Fraction

import numpy as np
import pytest

from insta_runtime.errors import UserError
from telepresence.sources import open_source
from telepresence.sources.video_file import VideoFrames, VideoSource
from tests.support.fake_time import FakeTime

av = pytest.importorskip("av")


def write_video(path, *, frames=20, fps=20, width=96, height=64, rotation=0, pixels="yuv420p", aspect=None, skip=()):
    """A clip with a red left half and a blue right half, whose brightness grows by 5 per frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = Fraction(1, fps)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(frames):
            if i in skip:
                continue
            rgb = np.zeros((height, width, 3), np.uint8)
            rgb[:, : width // 2, 0] = 100 + 5 * (i % 30)
            rgb[:, width // 2 :, 2] = 100 + 5 * (i % 30)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


def test_frames_are_decoded_once_in_order_with_their_own_times(clip):
    frames = VideoFrames(clip)
    assert (frames.fps, frames.count, frames.width, frames.height) == (20.0, 20, 96, 64)
    got = list(frames)
    assert [f.frame_id for f in got] == list(range(20))
    np.testing.assert_allclose([f.t_capture_ns / 1e9 for f in got], np.arange(20) / 20, atol=1e-3)
    red = [f.rgb[:, :40, 0].mean() for f in got]
    assert np.all(np.diff(red) > 1)
    assert got[0].rgb.dtype == np.uint8
    assert got[0].rgb[:, 56:, 2].mean() > 3 * got[0].rgb[:, 56:, 0].mean()


def test_gaps_in_the_time_stamps_are_kept(tmp_path):
    path = write_video(tmp_path / "gap.mp4", skip=(5, 6, 7))
    times = [f.t_capture_ns / 1e9 for f in VideoFrames(path)]
    assert len(times) == 17
    assert times[5] - times[4] == pytest.approx(4 / 20, abs=2e-3)


@pytest.mark.parametrize(("rotation", "red"), [(90, "bottom"), (-90, "top"), (180, "right")])
def test_rotated_clips_are_made_upright(tmp_path, rotation, red):
    path = write_video(tmp_path / "turned.mp4", rotation=rotation)
    frames = VideoFrames(path)
    rgb = next(frames).rgb.astype(float)
    h, w = rgb.shape[:2]
    assert (frames.width, frames.height) == (w, h) == ((96, 64) if rotation == 180 else (64, 96))
    half = {"top": rgb[: h // 3], "bottom": rgb[-h // 3 :], "right": rgb[:, -w // 3 :]}[red]
    assert half[..., 0].mean() > 3 * half[..., 2].mean()


def test_other_pixel_formats_and_pixel_shapes(tmp_path):
    ten_bit = next(VideoFrames(write_video(tmp_path / "deep.mkv", pixels="yuv422p10le")))
    assert ten_bit.rgb.shape == (64, 96, 3)
    wide = next(VideoFrames(write_video(tmp_path / "wide.mp4", aspect=Fraction(4, 3))))
    assert wide.rgb.shape == (64, 128, 3)


def test_a_truncated_file_gives_the_frames_it_has(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", frames=60).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) // 2])
    assert 5 < len(list(VideoFrames(cut))) < 60


def write_sound(path):
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))


def write_sound_mp4(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


BAD = {
    "empty.mp4": lambda p: p.write_bytes(b""),
    "text.mp4": lambda p: p.write_text("not a video\n" * 200),
    "text.txt": lambda p: p.write_text("not a video\n" * 200),
    "playlist.m3u8": lambda p: p.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n"),
    "sound.wav": write_sound,
    "sound.mp4": write_sound_mp4,
    "cut.mp4": lambda p: p.write_bytes(write_video(p.with_name("w.mp4")).read_bytes()[:600]),
    "missing.mp4": lambda p: None,
    "folder.mp4": lambda p: p.mkdir(),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_a_video_gives_a_one_line_error(tmp_path, name):
    path = tmp_path / name
    BAD[name](path)
    for attempt in (lambda: VideoFrames(path), lambda: open_source(f"file:{path}")):
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture
def clock(monkeypatch):
    """Fake clock of the video source."""
    fake = FakeTime()
    monkeypatch.setattr("telepresence.sources.video_file.time", fake)
    return fake


def test_playback_keeps_the_pace_of_the_file_and_loops(tmp_path, clock):
    source = VideoSource(write_video(tmp_path / "short.mp4", frames=6, fps=30))
    start = clock.monotonic()
    frames = []
    while len(frames) < 15:
        frame = source.read(0.5)
        assert frame is not None
        frames.append(frame)
    elapsed = clock.monotonic() - start
    source.close()
    assert elapsed > 0.9 * 14 / 30
    times = np.array([f.t_capture_ns for f in frames]) / 1e9
    assert np.all(np.diff(times) > 0)
    assert np.all(np.diff([f.frame_id for f in frames]) > 0)
    assert abs(frames[-1].t_capture_ns / 1e9 - clock.monotonic()) < 0.05
    red = [f.rgb[:, :40, 0].mean() for f in frames]
    assert np.any(np.diff(red) < -10)  # the next round


def test_a_slow_reader_skips_frames_and_keeps_the_pace(tmp_path, clock):
    source = VideoSource(write_video(tmp_path / "clip.mp4", frames=20, fps=20))
    first = source.read(1.0)
    clock.sleep(0.4)
    later = source.read(1.0)
    source.close()
    assert first is not None
    assert later is not None
    assert later.frame_id - first.frame_id >= 5
    assert (later.t_capture_ns - first.t_capture_ns) / 1e9 >= 0.3


def test_a_short_timeout_returns_none_and_loses_no_frame(tmp_path, clock):
    source = VideoSource(write_video(tmp_path / "slow.mp4", frames=4, fps=2))
    assert source.read(0.1) is not None
    assert source.read(0.05) is None
    frame = source.read(1.0)
    source.close()
    assert frame is not None
    assert frame.frame_id == 1

"""The video stream that a person means, changes of size inside a file, and names of files."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from insta_runtime.errors import UserError
from telepresence.measure.rehearsal.clip import open_clip
from telepresence.sources import open_source
from telepresence.sources.video_file import VideoFrames, VideoSource
from tests.support.fake_time import FakeTime
from tests.support.video_files import Track, write_sizes, write_tracks

RED, GREEN = (200, 20, 20), (20, 200, 20)


def shown(path):
    """Whether the first frame is ``red`` or ``green``, and the number of frames."""
    frames = [frame.rgb for frame in VideoFrames(path)]
    colour = frames[0].mean((0, 1))
    return ("red" if colour[0] > colour[1] else "green"), len(frames)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts"])
def test_a_thumbnail_without_the_flag_is_not_the_video(tmp_path, suffix):
    thumbnail = Track(RED, frames=1, side=(640, 480))
    assert shown(write_tracks(tmp_path / f"first.{suffix}", [thumbnail, Track(GREEN)])) == ("green", 20)
    assert shown(write_tracks(tmp_path / f"last.{suffix}", [Track(GREEN), thumbnail])) == ("green", 20)


def test_thumbnails_with_flags_or_of_other_codecs_are_not_the_video(tmp_path):
    cover = Track(RED, frames=1, mark=Disposition.attached_pic, codec="mjpeg")
    assert shown(write_tracks(tmp_path / "cover.mp4", [cover, Track(GREEN)])) == ("green", 20)
    picture = Track(RED, frames=3, side=(640, 480), codec="mjpeg", mark=Disposition.default)
    assert shown(write_tracks(tmp_path / "marked.mkv", [picture, Track(GREEN, mark=Disposition(0))])) == ("green", 20)


def test_the_stream_marked_as_default_the_longest_and_the_largest_is_preferred_in_this_order(tmp_path):
    plain, marked = Disposition(0), Disposition.default
    small = Track(GREEN, side=(64, 48), mark=marked)
    assert shown(write_tracks(tmp_path / "default.mkv", [Track(RED, mark=plain), small])) == ("green", 20)
    short = Track(RED, frames=12, side=(640, 480))
    assert shown(write_tracks(tmp_path / "long.mp4", [short, Track(GREEN, frames=40)])) == ("green", 40)
    slow = Track(RED, frames=12, fps=4, side=(640, 480))
    assert shown(write_tracks(tmp_path / "dense.mp4", [slow, Track(GREEN, frames=60)])) == ("green", 60)
    preview = Track(RED, frames=12, fps=8, side=(640, 480), mark=marked)
    assert shown(write_tracks(tmp_path / "full.mp4", [preview, Track(GREEN, frames=45, fps=30)])) == ("green", 45)
    half = Track(RED, frames=30, fps=15, mark=marked)
    assert shown(write_tracks(tmp_path / "half.mp4", [half, Track(GREEN, frames=60, fps=30)])) == ("red", 30)
    large = Track(GREEN, side=(128, 96))
    assert shown(write_tracks(tmp_path / "large.mkv", [Track(RED, side=(64, 48)), large])) == ("green", 20)


def test_a_stream_of_which_nothing_can_be_decoded_is_passed_over(tmp_path):
    path = write_tracks(tmp_path / "two.mp4", [Track(RED, side=(640, 480)), Track(GREEN)])
    written = path.read_bytes()
    assert written.count(b"avc1") >= 2
    at = written.rindex(b"stsd", 0, written.index(b"avc1", written.index(b"stsd")))
    first = written.index(b"avc1", at)
    path.write_bytes(written[:first] + b"zzzz" + written[first + 4 :])
    assert shown(path) == ("green", 20)


def test_a_recording_of_a_few_frames_says_so(tmp_path, caplog, monkeypatch):
    single = write_tracks(tmp_path / "single.mp4", [Track(GREEN, frames=1)])
    for path, words in ((single, "only 1 frame "), (write_tracks(tmp_path / "few.mkv", [Track(GREEN, 6)]), "6 frames")):
        frames = VideoFrames(path)
        assert len(list(frames)) < 10
        with pytest.raises(UserError, match=words) as caught:
            frames.require_frames()
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match=words):
            open_clip(path, None)
    enough = VideoFrames(write_tracks(tmp_path / "enough.mp4", [Track(GREEN, frames=30)]))
    with caplog.at_level(logging.WARNING):
        list(enough)
        enough.require_frames()
    assert not caplog.records
    monkeypatch.setattr("telepresence.sources.video_file.time", FakeTime())
    source = VideoSource(single)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            source.read(0.2)
    source.close()
    assert [record.getMessage().count("only 1 frame ") for record in caplog.records] == [1], "said once"


def gradient(width, height):
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, : width // 2, 0] = 200
    return rgb


@pytest.mark.parametrize(
    ("name", "second"),
    [("small.webm", (96, 64)), ("large.mkv", (384, 256)), ("turned.webm", (128, 192)), ("wide.mkv", (256, 128))],
)
def test_a_recording_whose_size_changes_is_refused_and_a_camera_follows(tmp_path, monkeypatch, name, second):
    pictures = [gradient(192, 128)] * 12 + [gradient(*second)] * 12
    path = write_sizes(tmp_path / name, pictures)
    with pytest.raises(UserError) as caught:
        list(VideoFrames(path))
    for word in (name, "192x128", f"{second[0]}x{second[1]}", "frame 12"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    clock = FakeTime()
    monkeypatch.setattr("telepresence.sources.video_file.time", clock)
    source = VideoSource(path)
    sizes = [frame.rgb.shape[1::-1] for frame in (source.read(0.2) for _ in range(30)) if frame is not None]
    source.close()
    assert set(sizes) == {(192, 128), second}
    assert sizes[0] == sizes[-1] == (192, 128), "the next round begins"


NAMES = [
    "2024-05-01T12:30:00.mp4",
    "pipe:1.mp4",
    "http:.mp4",
    "file:x.mp4",
    "concat:a|b.mp4",
    "-x.mp4",
    "%d.mp4",
    "%03d.gif.mp4",
    "a b\u00a0\u0442\u0435\u0441\u0442 \u8138 \U0001f600.mp4",
    "two\nlines.mp4",
    "'quoted' \"name\" $HOME;#&?*[0-9].mp4",
    os.fsdecode(b"latin\xe9.mp4"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, which is the current one, so that paths are relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_whatever_its_name(folder, name):
    made = write_tracks(folder / "made.mp4", [Track(GREEN, frames=12)])
    made.rename(folder / name)
    assert shown(Path(name)) == ("green", 12)
    assert shown(folder / name) == ("green", 12)
    source = open_source(f"file:{name}", on_audio=print)
    assert source.name == name
    assert source.read(5.0) is not None
    source.close()
    assert open_clip(Path(name), None).seconds == pytest.approx(12 / 20)


def test_names_in_the_pattern_of_image_sequences_are_one_file(folder):
    with av.open("made.gif", "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), RED, np.uint8), "rgb24")))
        container.mux(stream.encode())
    Path("made.gif").rename("%d.gif")
    assert shown(Path("%d.gif"))[0] == "red"

"""Audio of a video file: in step with its frames, in a loop; absent, damaged and malicious audio."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from telepresence.runtime.audio import RATE, AudioBus, AudioChunk
from telepresence.runtime.frames import CameraFrame
from telepresence.sources import open_source
from telepresence.sources.file_audio import FileAudio
from tests.support.fake_time import FakeTime

FPS = 25
SECONDS = 1.6
HERTZ = 32_000


def write_video_with_beeps(
    path: Path, seconds: float = 1.6, sound: bool = True, late_s: float = 0.0, codec: str = "aac"
) -> Path:
    """A clip that is white for 80 ms from 0.4 s and from 1.2 s on, with a beep at the same times."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "20"})
        video.width = video.height = 64
        audio = container.add_stream(codec, rate=HERTZ, layout="mono") if sound else None
        for number in range(round(SECONDS * FPS)):
            at = number / FPS
            lit = at % 0.8 >= 0.399 and at % 0.8 < 0.479
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 230 * lit + 10, np.uint8), format="rgb24")
            picture.pts, picture.time_base = number + round(late_s * FPS), Fraction(1, FPS)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        if audio is not None:
            t = np.arange(round(SECONDS * HERTZ)) / HERTZ
            wave = np.where((t % 0.8 >= 0.4) & (t % 0.8 < 0.48), 0.6 * np.sin(2 * np.pi * 900 * t), 0.0)
            step = 1024
            for start in range(0, len(wave), step):
                part = wave[None, start : start + step].astype(np.float32)
                block = av.AudioFrame.from_ndarray(part, "fltp", "mono")
                block.sample_rate, block.pts, block.time_base = (
                    HERTZ,
                    start + round(late_s * HERTZ),
                    Fraction(1, HERTZ),
                )
                container.mux(audio.encode(block))
            container.mux(audio.encode())
    return path


def onsets(times: list[float], lit: list[bool], gap: float = 0.3) -> list[float]:
    """Times at which ``lit`` becomes true after at least ``gap`` seconds."""
    found: list[float] = []
    last = -1e9
    for at, is_lit in zip(times, lit, strict=True):
        if is_lit:
            if at - last > gap:
                found.append(at)
            last = at
    return found


def play(path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch) -> tuple[list[CameraFrame], list[AudioChunk]]:
    """Frames and audio of a file that is played for ``seconds`` of a fake clock."""
    clock = FakeTime()
    monkeypatch.setattr("telepresence.sources.video_file.time", clock)
    chunks: list[AudioChunk] = []
    source = open_source(f"file:{path}", on_audio=chunks.append)
    frames = []
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        frame = source.read(0.2)
        if frame is not None:
            frames.append(frame)
    source.close()
    source.close()
    return frames, chunks


def test_a_beep_has_the_capture_time_of_its_flash_in_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, chunks = play(write_video_with_beeps(tmp_path / "clip.mp4", late_s=0.4), 2.4, monkeypatch)
    seen = onsets([f.t_capture_ns * 1e-9 for f in frames], [f.rgb.mean() > 120 for f in frames])
    samples = np.concatenate([chunk.samples for chunk in chunks])
    assert samples.shape[1] == 2
    times = np.concatenate([c.t_capture_ns * 1e-9 + np.arange(len(c.samples)) / RATE for c in chunks])
    loud = np.abs(samples[:, 0].astype(int)) > 4000
    listened = onsets(times[loud].tolist(), [True] * int(loud.sum()))
    assert len(seen) >= 3
    for flash in seen:
        assert min(abs(flash - beep) for beep in listened) < 1.0 / FPS
    gaps = np.diff([c.t_capture_ns for c in chunks]) * 1e-9
    assert gaps.max() < 0.1  # also from one round to the next
    # Audio is passed on before the frame is due, but not far ahead.
    assert chunks[-1].t_capture_ns - frames[-1].t_capture_ns < 0.35e9


def test_a_video_without_audio_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, chunks = play(write_video_with_beeps(tmp_path / "silent.mp4", sound=False), 0.3, monkeypatch)
    assert frames
    assert chunks == []


def test_truncated_or_damaged_audio_ends_where_it_is_cut(tmp_path: Path) -> None:
    whole = write_video_with_beeps(tmp_path / "whole.mkv", codec="pcm_s16le").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(12):
        torn = bytearray(whole[: rng.integers(1, len(whole))])
        for _ in range(number):
            torn[rng.integers(0, len(torn))] = rng.integers(0, 256)
        path = tmp_path / f"{number}.mkv"
        path.write_bytes(torn)
        track = FileAudio(path, {"protocol_whitelist": "file"})
        for at, samples in track.read_until(1e9):
            assert np.isfinite(at)
            assert samples.shape[1] == 2
        track.close()
        assert list(track.read_until(1e9)) == []


def write_streams(path: Path, streams: list[tuple[str, str, int]], seconds: float = 1.0) -> Path:
    """A video with audio streams of codec, layout and rate, each a tone of 400 Hz times its number (from 1)."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width = video.height = 64
        tracks = [container.add_stream(codec, rate=rate, layout=layout) for codec, layout, rate in streams]
        for number in range(round(seconds * FPS)):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        for number, (track, (_, layout, rate)) in enumerate(zip(tracks, streams, strict=True), 1):
            t = np.arange(round(seconds * rate)) / rate
            wave = (0.5 * np.sin(2 * np.pi * 400 * number * t)).astype(np.float32)
            channels = av.AudioLayout(layout).nb_channels
            for start in range(0, len(wave) - 1023, 1024):
                part = np.tile(wave[start : start + 1024], (channels, 1))
                block = av.AudioFrame.from_ndarray(part, "fltp", layout)
                block.sample_rate, block.pts, block.time_base = rate, start, Fraction(1, rate)
                container.mux(track.encode(block))
            container.mux(track.encode())
    return path


def pitch(path: Path) -> float | None:
    """Loudest frequency of the audio of a file in Hz; None if it yields none."""
    track = FileAudio(path, {"protocol_whitelist": "file"})
    blocks = [samples[:, 0] for _, samples in track.read_until(1e9)]
    track.close()
    if not blocks:
        return None
    wave = np.concatenate(blocks).astype(float)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(np.argmax(spectrum) * RATE / len(wave))


def rename_codec(path: Path, number: int, tag: bytes) -> Path:
    """Replace the codec tag of the AAC stream ``number`` (from 0) of an MP4 file by one that no decoder has."""
    written = bytearray(path.read_bytes())
    at = -1
    for _ in range(number + 1):
        at = written.index(b"mp4a\0\0\0\0", at + 1)
    written[at : at + 4] = tag
    box = written.index(b"esds", at)  # says AAC once more
    written[box : box + 4] = b"free"
    path.write_bytes(written)
    return path


TWO = [("aac", "stereo", 48_000), ("aac", "stereo", 48_000)]


@pytest.mark.parametrize("tag", [b"apac", b"zzzz", b"enca", b"iamf"])
def test_the_first_audio_stream_that_can_be_decoded_is_played(tmp_path: Path, tag: bytes) -> None:
    both = write_streams(tmp_path / "both.mp4", TWO)
    assert pitch(both) == pytest.approx(400, abs=5)
    assert pitch(rename_codec(both, 0, tag)) == pytest.approx(800, abs=5)


def test_a_stream_of_damaged_packets_is_passed_over(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "damaged.mkv", [("flac", "stereo", 48_000), ("pcm_s16le", "mono", 48_000)])
    written = path.read_bytes()
    path.write_bytes(written.replace(b"\xff\xf8", b"\0\0"))  # the first bytes of every FLAC frame
    assert pitch(path) == pytest.approx(800, abs=5)


def test_audio_that_cannot_be_decoded_is_said_once_and_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = rename_codec(rename_codec(write_streams(tmp_path / "mute.mp4", TWO, 0.4), 1, b"zzzz"), 0, b"apac")
    clock, bus = FakeTime(), AudioBus()
    monkeypatch.setattr("telepresence.sources.video_file.time", clock)
    with caplog.at_level(logging.WARNING, "telepresence"):
        source = open_source(f"file:{path}", on_audio=bus.play_source, on_silence=bus.report_silence)
        frames = [source.read(0.2) for _ in range(25)]
        source.close()
    assert all(frames), "the video is played, also in the next round"
    said = [record.getMessage() for record in caplog.records if "sound" in record.getMessage()]
    assert len(said) == 1
    assert "mute.mp4" in said[0]
    assert "AAC" in said[0], "what to do"
    assert "\n" not in said[0]
    assert "decoded" in bus.status()["error"]


@pytest.mark.parametrize(
    ("name", "codec", "layout", "rate"),
    [
        ("mono.mkv", "pcm_s16le", "mono", 8_000),
        ("surround.mp4", "aac", "5.1", 44_100),
        ("float.mkv", "pcm_f32le", "5.1", 96_000),
        ("four.mkv", "flac", "quad", 48_000),
        ("three.avi", "pcm_u8", "3.0", 22_050),
        ("opus.webm.mkv", "libopus", "stereo", 48_000),
        ("old.avi", "libmp3lame", "mono", 24_000),
        ("broadcast.ts", "ac3", "5.1", 48_000),
        ("lossless.mov", "alac", "stereo", 44_100),
    ],
)
def test_layouts_sample_formats_and_rates_are_played(
    tmp_path: Path, name: str, codec: str, layout: str, rate: int
) -> None:
    assert pitch(write_streams(tmp_path / name, [(codec, layout, rate)])) == pytest.approx(400, abs=6)

"""Test videos for cameras: a face with a number in every frame (`barcode`) and a beep every two seconds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Final

import av
import numpy as np
from PIL import Image

from call_figures import barcode

WIDTH: Final = 640
"""Width of a frame in pixels."""

HEIGHT: Final = 480
"""Height of a frame in pixels."""

FPS: Final = 30
"""Frames a second."""

ACTOR_SIDE: Final = 320
"""Side, in pixels, at which the synthetic actor is rendered."""

ACTOR_REPEATS: Final = 2
"""Frames of the video that show the same rendering of the synthetic actor."""

AUDIO_HZ: Final = 48_000
"""Audio samples a second."""

BEEP_EVERY: Final = 60
"""Frames between the starts of two beeps."""

BEEP_S: Final = 0.06
"""Length of a beep in seconds."""

BEEP_HZ: Final = 1000.0
"""Frequency of a beep."""

Writer = Callable[[Path | None, Path, float], None]
"""Function that writes a video of a clip (None: of the synthetic actor) to a path, of a length in seconds."""


def numbered(clip: Path | None, count: int) -> Iterator[np.ndarray]:
    """Yield ``count`` frames (480, 640, 3) uint8: the middle square of the clip, played forwards and backwards in
    turns, each with its number at the left."""
    pictures = list(islice(_clip(clip) if clip is not None else _actor(count), count))
    back_and_forth = [*pictures, *pictures[-2:0:-1]]
    for number in range(count):
        side = Image.fromarray(_square(back_and_forth[number % len(back_and_forth)]))
        picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        left = (WIDTH - HEIGHT) // 2
        picture[:, left : left + HEIGHT] = np.asarray(side.resize((HEIGHT, HEIGHT), Image.Resampling.BILINEAR))
        barcode.write(picture, barcode.CAMERA_FRAME, number)
        yield picture


def write_camera_video(clip: Path | None, target: Path, seconds: float) -> None:
    """Write a motion-JPEG file that Chromium plays at 30 frames a second as its camera, in a loop."""
    with target.open("wb") as video:
        for picture in numbered(clip, round(seconds * FPS)):
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, "JPEG", quality=90)
            video.write(encoded.getvalue())


def write_video_with_beeps(clip: Path | None, target: Path, seconds: float) -> None:
    """Write an H.264 video with audio: a beep starts at each frame whose number `BEEP_EVERY` divides."""
    with av.open(str(target), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=AUDIO_HZ, layout="mono")
        for number, picture in enumerate(numbered(clip, round(seconds * FPS))):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            samples = av.AudioFrame.from_ndarray(_audio(number)[None], format="fltp", layout="mono")
            samples.sample_rate = AUDIO_HZ
            samples.pts = number * AUDIO_HZ // FPS
            samples.time_base = Fraction(1, AUDIO_HZ)
            container.mux(audio.encode(samples))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def _clip(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _actor(count: int) -> Iterator[np.ndarray]:
    from telepresence.sources.synthetic import actor_clip

    for frame in actor_clip(count // ACTOR_REPEATS + 1, FPS / ACTOR_REPEATS, ACTOR_SIDE):
        yield from [frame.rgb] * ACTOR_REPEATS  # rendering every frame would take a minute


def _audio(number: int) -> np.ndarray:
    """Audio samples (1600,) float32 during frame ``number``."""
    since = number % BEEP_EVERY / FPS + np.arange(AUDIO_HZ // FPS) / AUDIO_HZ  # seconds since the start of the beep
    return np.where(since < BEEP_S, 0.5 * np.sin(2 * np.pi * BEEP_HZ * since), 0.0).astype(np.float32)


def _square(picture: np.ndarray) -> np.ndarray:
    """The largest square in the middle of a frame."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]

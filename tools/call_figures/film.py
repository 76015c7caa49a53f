"""Films for cameras: a face whose every picture is numbered, with a beep now and then."""

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
HEIGHT: Final = 480
FPS: Final = 30
ACTOR_SIDE: Final = 320
ACTOR_EVERY: Final = 2
"""Of the actor's film every picture is shown so often."""
SOUND_HZ: Final = 48_000
BEEP_EVERY: Final = 60
"""Pictures between the beginnings of two beeps."""
BEEP_S: Final = 0.06
BEEP_HZ: Final = 1000.0

Writer = Callable[[Path | None, Path, float], None]
"""Writes a film of a clip, or of the synthetic actor, to a place, so many seconds long."""


def numbered(clip: Path | None, count: int) -> Iterator[np.ndarray]:
    """``count`` pictures (480, 640, 3) uint8: the middle of the clip, to and fro, each with its number at the left."""
    pictures = list(islice(_clip(clip) if clip is not None else _actor(count), count))
    back_and_forth = [*pictures, *pictures[-2:0:-1]]
    for number in range(count):
        side = Image.fromarray(_square(back_and_forth[number % len(back_and_forth)]))
        picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        left = (WIDTH - HEIGHT) // 2
        picture[:, left : left + HEIGHT] = np.asarray(side.resize((HEIGHT, HEIGHT), Image.Resampling.BILINEAR))
        barcode.write(picture, barcode.FILMED, number)
        yield picture


def write_camera(clip: Path | None, target: Path, seconds: float) -> None:
    """A motion-JPEG film that Chromium plays at 30 pictures a second as its camera, again and again."""
    with target.open("wb") as film:
        for picture in numbered(clip, round(seconds * FPS)):
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, "JPEG", quality=90)
            film.write(encoded.getvalue())


def write_beeping(clip: Path | None, target: Path, seconds: float) -> None:
    """A video with sound, for a file source: a beep begins with every picture whose number `BEEP_EVERY` divides."""
    with av.open(str(target), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
        for number, picture in enumerate(numbered(clip, round(seconds * FPS))):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            sound = av.AudioFrame.from_ndarray(_sound(number)[None], format="fltp", layout="mono")
            sound.sample_rate = SOUND_HZ
            sound.pts = number * SOUND_HZ // FPS
            sound.time_base = Fraction(1, SOUND_HZ)
            container.mux(audio.encode(sound))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def _clip(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _actor(count: int) -> Iterator[np.ndarray]:
    from telepresence.sources.synthetic import actor_take

    for frame in actor_take(count // ACTOR_EVERY + 1, FPS / ACTOR_EVERY, ACTOR_SIDE):
        yield from [frame.rgb] * ACTOR_EVERY  # who draws every picture waits for a minute


def _sound(number: int) -> np.ndarray:
    """(1600,) float32: what is heard during picture ``number``."""
    since = number % BEEP_EVERY / FPS + np.arange(SOUND_HZ // FPS) / SOUND_HZ  # seconds since the beep began
    return np.where(since < BEEP_S, 0.5 * np.sin(2 * np.pi * BEEP_HZ * since), 0.0).astype(np.float32)


def _square(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]
